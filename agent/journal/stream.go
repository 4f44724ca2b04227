package journal

import (
	"fmt"
	"os"
	"syscall"
)

// Receives reports whether what is written to f goes to journald already: systemd connected it and says so in
// JOURNAL_STREAM as device:inode (systemd.exec(5)). Such a process logs everything twice when it also writes f.
func Receives(f *os.File) bool {
	env := os.Getenv("JOURNAL_STREAM")
	if env == "" {
		return false
	}
	fi, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && env == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
