// Package oomtest keeps tests out of each other's way that have the kernel kill processes: every tracer on a machine sees all
// kills, and the packages of `go test ./...` run side by side.
package oomtest

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// heldEnv tells children that the test that started them holds the lock.
const heldEnv = "SPILLWAY_OOM_TESTS_HELD"

var byParent = os.Getenv(heldEnv) != ""

// What this process holds of the machine's lock, by the tests that asked for it.
var held struct {
	sync.Mutex
	file  *os.File
	alone bool
	by    int
}

// Among lets other tests kill meanwhile, until the end of this one.
func Among(t testing.TB) { t.Helper(); hold(t, false) }

// Alone waits until no other test kills, and keeps them from it until the end of this one, which may ask for Among after it: for
// a test that counts what does not fit into a buffer, or takes a line without a cause for its own.
func Alone(t testing.TB) { t.Helper(); hold(t, true) }

func hold(t testing.TB, alone bool) {
	t.Helper()
	if byParent {
		return
	}
	held.Lock()
	defer held.Unlock()
	if held.by == 0 {
		lock(t, alone)
	} else if alone && !held.alone {
		t.Fatal("Alone after Among")
	}
	held.by++
	t.Cleanup(func() {
		held.Lock()
		defer held.Unlock()
		if held.by--; held.by == 0 {
			os.Unsetenv(heldEnv)
			held.file.Close() // which unlocks
		}
	})
}

func lock(t testing.TB, alone bool) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(os.TempDir(), "spillway-oom-tests.lock"), os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	how := syscall.LOCK_SH
	if alone {
		how = syscall.LOCK_EX
	}
	for err = syscall.EINTR; err == syscall.EINTR; {
		err = syscall.Flock(int(f.Fd()), how)
	}
	if err == nil {
		err = os.Setenv(heldEnv, "1")
	}
	if err != nil {
		f.Close()
		t.Fatalf("lock %s: %v", f.Name(), err)
	}
	held.file, held.alone = f, alone
}
