package cgroup

import (
	"golang.org/x/sys/unix"
)

// Files are plain descriptors read with pread. An os.File would enter kernfs files into the runtime's epoll set, where
// every memory event of a pod wakes the process.

// noFile marks a descriptor that is not open.
const noFile = -1

// openAt opens the file name of the directory for reading; name is one component and no symbolic link is followed.
func openAt(dir int, name string) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != unix.EINTR {
			if err != nil {
				return noFile, err
			}
			return fd, nil
		}
	}
}

// openDirAt opens a directory for reading without following a symbolic link.
func openDirAt(dir int, name string) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
		if err != unix.EINTR {
			if err != nil {
				return noFile, err
			}
			return fd, nil
		}
	}
}

// openProc opens a file by its full path.
func openProc(name string) (int, error) {
	for {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			if err != nil {
				return noFile, err
			}
			return fd, nil
		}
	}
}

func existsAt(dir int, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

func closeFile(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd) // nothing was written, so nothing can be lost
	}
	*fd = noFile
}

// maxFile bounds the growth of a buffer.
const maxFile = 4 << 20

// readWhole reads the file from its start into the buffer, which it replaces by a bigger one when the file fills it. The
// kernel renders a memory file at the read of offset 0, so a read that fits is one consistent text.
func readWhole(fd int, buf *[]byte) ([]byte, error) {
	for {
		n, err := unix.Pread(fd, *buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n < len(*buf) {
			return (*buf)[:n], nil
		}
		if len(*buf) >= maxFile {
			return nil, errTooLong
		}
		*buf = make([]byte, 2*len(*buf))
	}
}

// readLocal is readWhole into local, and into buf when the file does not fit.
func readLocal(fd int, local []byte, buf *[]byte) ([]byte, error) {
	for {
		n, err := unix.Pread(fd, local, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n < len(local) {
			return local[:n], nil
		}
		if len(*buf) <= len(local) {
			*buf = make([]byte, 2*len(local))
		}
		return readWhole(fd, buf)
	}
}

// readToEnd is readWhole for the files that the kernel renders line by line (/proc/vmstat, cgroup.procs): one read
// returns at most a page of them, so it reads on until the end.
func readToEnd(fd int, buf *[]byte) ([]byte, error) {
	n := 0
	for {
		if n == len(*buf) {
			if n >= maxFile {
				return nil, errTooLong
			}
			*buf = append(*buf, make([]byte, n)...)
		}
		k, err := unix.Pread(fd, (*buf)[n:], int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if k == 0 {
			return (*buf)[:n], nil
		}
		n += k
	}
}
