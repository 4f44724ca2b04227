//go:build vm

package vm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// systemdUnits are those of Debian's systemd that a machine without disks and users needs.
var systemdUnits = []string{
	"basic.target", "sysinit.target", "local-fs.target", "local-fs-pre.target", "paths.target", "slices.target", "sockets.target", "timers.target", "multi-user.target",
	"shutdown.target", "umount.target", "time-set.target", "systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket",
}

// TestSystemd boots a machine in which the systemd of this machine runs deploy/systemd's unit; the test that looks at it is
// deploy's.
func TestSystemd(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "spillway")
	if err := goTool(t.Context(), "build", "-trimpath", "-o", agent, "spillway/cmd/spillway"); err != nil {
		t.Fatal(err)
	}
	s := Spec{
		Binary: testBinary(t, "deploy"), Args: []string{"-test.v", "-test.run=^TestSystemdUnit$", "-test.timeout=8m"}, Env: []string{"SPILLWAY_MACHINE_IS_A_TEST=1"},
		MemoryMiB: 1536, Timeout: 10 * time.Minute, Progress: t.Output(),
		Files: map[string]string{"/usr/local/bin/spillway": agent, "/test/systemd": "../../deploy/systemd", "/test/once": "../../deploy/once", "/test/base": "../../deploy/base"},
		Programs: map[string]string{
			"/lib/systemd/systemd": "/lib/systemd/systemd", "/lib/systemd/systemd-journald": "/lib/systemd/systemd-journald",
			"/usr/bin/systemctl": "/bin/systemctl", "/usr/bin/journalctl": "/bin/journalctl",
		},
	}
	for _, u := range systemdUnits {
		s.Files["/lib/systemd/system/"+u] = "/lib/systemd/system/" + u
	}
	for name, source := range s.Programs {
		if _, err := os.Stat(source); err != nil {
			t.Fatalf("%s of the machine comes from Debian's package systemd: %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	res, err := Run(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("exit code %d, %.1f s:\n%s", res.ExitCode, res.Took.Seconds(), res.Output)
	if res.ExitCode != 0 || !strings.Contains(res.Output, "--- PASS: TestSystemdUnit") {
		t.Error("the unit does not do what it says")
	}
}
