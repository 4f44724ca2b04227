//go:build vm

package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testBinary(t *testing.T, pkg string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "test")
	if err := goTool(t.Context(), "test", "-c", "-o", bin, "spillway/"+pkg); err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestRunReturnsExitCode(t *testing.T) {
	bin := testBinary(t, "test/imports")
	res, err := Run(t.Context(), Spec{Binary: bin, Args: []string{"-nosuchflag"}, MemoryMiB: 256, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	if res.ExitCode != 2 || !strings.Contains(res.Output, "flag provided but not defined: -nosuchflag\n") {
		t.Errorf("exit code %d, output %q", res.ExitCode, res.Output)
	}
	t.Logf("machine on and off in %.1f s", res.Took.Seconds())
}

// TestRunShowsConsole: whatever keeps the program from running is on the console, and the error shows it.
func TestRunShowsConsole(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("not a program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		s    Spec
		says string
	}{
		{"not a program", Spec{Binary: text, MemoryMiB: 256}, "exec format error"},
		{"too little memory", Spec{Binary: text, MemoryMiB: 32}, "last lines of its console"},
		{"unknown hierarchy", Spec{Binary: text, MemoryMiB: 256, Cgroup: "v3"}, `unknown hierarchy "v3"`},
		{"does not end in time", Spec{Binary: text, MemoryMiB: 256, Timeout: 100 * time.Millisecond}, "not off after 100ms"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.s.Progress = t.Output()
			if tc.s.Timeout == 0 {
				tc.s.Timeout = time.Minute
			}
			_, err := Run(t.Context(), tc.s)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want %q in it", err, tc.says)
			}
		})
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "spillway-vm-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
