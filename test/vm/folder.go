package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const folderPattern = "spillway-vm-*"

// ownFolder makes a folder for one machine's files and removes those of processes that died.
func ownFolder() (dir string, remove func(), err error) {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), folderPattern))
	if err != nil {
		return "", nil, fmt.Errorf("list folders of machines: %w", err)
	}
	for _, o := range old {
		if lock, err := lockFolder(o); err == nil {
			err = os.RemoveAll(o)
			lock.Close()
			if err != nil {
				return "", nil, fmt.Errorf("remove folder of a machine: %w", err)
			}
		}
	}
	// Between the making and the lock another call may take it for an old one.
	for range 10 {
		if dir, err = os.MkdirTemp("", folderPattern); err != nil {
			break
		}
		var lock *os.File
		if lock, err = lockFolder(dir); err != nil {
			continue
		}
		if _, err = os.Stat(dir); err != nil {
			lock.Close()
			continue
		}
		return dir, func() {
			os.RemoveAll(dir)
			lock.Close()
		}, nil
	}
	return "", nil, fmt.Errorf("make folder of a machine: %w", err)
}

// lockFolder takes a lock that the kernel drops with the process.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
