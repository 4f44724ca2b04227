package cgroup

import (
	"errors"
	"io/fs"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrGone says that the cgroup was removed (ENOENT or ENODEV), a normal event on a node. It is found with errors.Is.
var ErrGone = errors.New("cgroup is gone")

// ErrNoCgroup says that no cgroup file system is mounted at or below the root that was given to Open.
var ErrNoCgroup = errors.New("no cgroup file system")

// ErrNoMemoryController says that cgroups are mounted, but none of them with the memory controller.
var ErrNoMemoryController = errors.New("no memory controller")

// ErrNoKubepods says that the memory hierarchy has no cgroup that a kubelet keeps its pods in.
var ErrNoKubepods = errors.New("no kubepods cgroup")

// The causes that a ParseError can have.
var (
	errEmpty     = errors.New("empty file")
	errTruncated = errors.New("last line is cut off")
	errNumber    = errors.New("not a number")
	errTooBig    = errors.New("number over 2^63")
	errUnit      = errors.New("unknown unit")
	errTwice     = errors.New("key appears twice")
	errMissing   = errors.New("required key is missing")
	errOneValue  = errors.New("not a single value")
	errTooLong   = errors.New("file over 4 MiB")
)

// FileError is a failed system call on one file of a cgroup or of /proc.
type FileError struct {
	Op   string // "open", "read", ...
	Path string // path below the hierarchy, or the directory below /proc
	File string // file name; empty for the directory itself
	Err  error  // the errno

	gone bool
}

// Error returns "op path/file: cause".
func (e *FileError) Error() string {
	return e.Op + " " + join(e.Path, e.File) + ": " + e.Err.Error()
}

// Unwrap returns the errno.
func (e *FileError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, ErrGone) true when the cgroup itself was removed.
func (e *FileError) Is(target error) bool { return target == ErrGone && e.gone }

// ParseError is a file whose content is not what the kernel documents.
type ParseError struct {
	Path  string // path below the hierarchy, or the directory below /proc
	File  string
	Input string // the offending input, quoted and at most 80 bytes of it
	Err   error
}

// Error returns "parse path/file: input: cause".
func (e *ParseError) Error() string {
	s := "parse " + join(e.Path, e.File) + ": "
	if e.Input != "" {
		s += e.Input + ": "
	}
	return s + e.Err.Error()
}

// Unwrap returns the cause.
func (e *ParseError) Unwrap() error { return e.Err }

// UnsupportedError says that this kernel, or the way it is set up, does not offer a feature.
type UnsupportedError struct {
	Feature string // what was asked for
	Needs   string // what would have to be there
	Err     error  // the errno that told it, where there was one
}

// Error returns "unsupported: feature, needs needs", and the errno.
func (e *UnsupportedError) Error() string {
	s := "unsupported: " + e.Feature + ", needs " + e.Needs
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the errno, or nil.
func (e *UnsupportedError) Unwrap() error { return e.Err }

func join(dir, file string) string {
	switch {
	case file == "":
		return dir
	case dir == "/":
		return "/" + file
	}
	return dir + "/" + file
}

// fileError wraps the cause of a failed call; the errno is taken out of an fs.PathError, whose path repeats ours.
func fileError(op, path, file string, err error, gone bool) *FileError {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &FileError{Op: op, Path: path, File: file, Err: err, gone: gone}
}

// isGone reports the two errnos of a removed cgroup: ENOENT from a lookup, ENODEV from a read of an open file
// (fs/kernfs/file.c returns it once the node is deactivated).
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

func isErrno(err error, errno unix.Errno) bool { return errors.Is(err, errno) }

const maxQuoted = 80

func quote(b []byte) string {
	if len(b) <= maxQuoted {
		return strconv.Quote(string(b))
	}
	// Not by way of fmt, which would move the buffers of all readers to the heap.
	return strconv.Quote(string(b[:maxQuoted])) + "... (" + strconv.Itoa(len(b)) + " bytes)"
}
