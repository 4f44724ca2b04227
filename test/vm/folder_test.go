package vm

import (
	"os"
	"testing"
)

func TestOwnFolder(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	first, remove, err := ownFolder()
	if err != nil {
		t.Fatal(err)
	}
	dead, err := os.MkdirTemp("", folderPattern) // nobody holds its lock
	if err != nil {
		t.Fatal(err)
	}
	second, removeSecond, err := ownFolder()
	if err != nil {
		t.Fatal(err)
	}
	if first == second {
		t.Errorf("two machines share %s", first)
	}
	if _, err := os.Stat(first); err != nil {
		t.Errorf("the folder of a living machine: %v", err)
	}
	if _, err := os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("the folder of a dead machine: %v, want it gone", err)
	}
	remove()
	removeSecond()
	for _, dir := range []string{first, second} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s after the end: %v", dir, err)
		}
	}
}
