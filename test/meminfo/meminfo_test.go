package meminfo

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLeft(t *testing.T) {
	for text, want := range map[string]struct {
		left int64
		err  string
	}{
		"MemTotal: 100 kB\nMemFree:       30 kB\nActive(file):  5 kB\nInactive(file):       12 kB\n": {42 << 10, ""},
		"MemTotal: 100 kB\nMemFree:       30 kB\n":                                                   {0, "no MemFree or no Inactive(file)"},
		"MemFree: many kB\nInactive(file): 1 kB\n":                                                   {0, "MemFree"},
	} {
		file := filepath.Join(t.TempDir(), "meminfo")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Left(file)
		if got != want.left || want.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), want.err) {
			t.Errorf("%q: %d, %v, want %d, %q", text, got, err, want.left, want.err)
		}
	}
	if _, err := Left("/nonexistent/meminfo"); err == nil {
		t.Error("no error for a file that is not there")
	}
	if n, err := Left("/proc/meminfo"); err != nil || n <= 0 {
		t.Errorf("this machine: %d, %v", n, err)
	}
}
