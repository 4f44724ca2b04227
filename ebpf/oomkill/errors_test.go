package oomkill

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// openWith is the child of TestRefusals: it gives up all capabilities but the
// named ones, opens a tracer and says how that went.
func openWith(arg string) {
	capabilities, node, _ := strings.Cut(arg, ":")
	if capabilities != "all" {
		known := map[string]int{
			"CAP_BPF":          unix.CAP_BPF,
			"CAP_PERFMON":      unix.CAP_PERFMON,
			"CAP_SYS_ADMIN":    unix.CAP_SYS_ADMIN,
			"CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE, // if we have it
		}
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data, have [2]unix.CapUserData
		if err := unix.Capget(&hdr, &have[0]); err != nil {
			fmt.Println("capget:", err)
			return
		}
		for name := range strings.SplitSeq(capabilities, "+") {
			if c, ok := known[name]; ok {
				data[c/32].Permitted |= have[c/32].Permitted & (1 << (c % 32))
				data[c/32].Effective = data[c/32].Permitted
			}
		}
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			fmt.Println("capset:", err)
			return
		}
	}
	choose := hooksFor
	var o Options
	// What follows is in a mount namespace of our own.
	switch what, file, _ := strings.Cut(node, "="); what {
	case "no tracefs":
		choose = func(victimArg) []hook { return []hook{classic} }
		for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug"} {
			for unix.Unmount(dir, unix.MNT_DETACH) == nil {
			}
		}
	case "no BTF":
		if err := unix.Mount("tmpfs", "/sys/kernel/btf", "tmpfs", 0, ""); err != nil {
			fmt.Println("mount:", err)
			return
		}
		o.BTF = file
	}
	tracer, err := open(o, choose)
	var denied *PermissionError
	var unsupported *UnsupportedError
	switch {
	case err == nil:
		fmt.Println("ok", tracer.Hook(), tracer.Close())
	case errors.As(err, &denied):
		fmt.Println("permission", denied.Missing, err)
	case errors.As(err, &unsupported):
		fmt.Println("unsupported", err)
	default:
		fmt.Println("other", err)
	}
}

func TestRefusals(t *testing.T) {
	openTracer(t, Options{}) // skips where there is nothing to give up
	counts, err := countsMemlock()
	if err != nil {
		t.Fatal(err)
	}
	enough := "ok "
	if counts {
		enough = "permission [CAP_SYS_RESOURCE] open oom tracer: not permitted: needs CAP_SYS_RESOURCE: "
	}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "btf")
	if err := os.WriteFile(file, cutBTF(t, kernel, true), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, mode string
		attr       syscall.SysProcAttr
		want       string
	}{
		{"no capability", "none", syscall.SysProcAttr{},
			"permission [CAP_BPF CAP_PERFMON] open oom tracer: not permitted: needs CAP_BPF and CAP_PERFMON: "},
		{"CAP_BPF alone", "CAP_BPF", syscall.SysProcAttr{}, "permission [CAP_PERFMON] "},
		{"CAP_PERFMON alone", "CAP_PERFMON", syscall.SysProcAttr{}, "permission [CAP_BPF] "},
		{"the two that are needed", "CAP_BPF+CAP_PERFMON", syscall.SysProcAttr{}, enough},
		{"CAP_SYS_ADMIN covers both", "CAP_SYS_ADMIN", syscall.SysProcAttr{}, enough},
		{"the two, and the limit can be raised", "CAP_BPF+CAP_PERFMON+CAP_SYS_RESOURCE", syscall.SysProcAttr{}, "ok "},
		{"all, but in a user namespace", "all", syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{Size: 1}},
		}, "permission [] open oom tracer: not permitted: the capabilities hold in a user namespace only: "},
		{"no BTF", "all:no BTF", syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS},
			"unsupported open oom tracer: unsupported: types of the running kernel, needs a kernel with CONFIG_DEBUG_INFO_BTF or a BTF file for it: "},
		{"no BTF, but a file of it", "all:no BTF=" + file, syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS},
			"ok raw_tp/mark_victim "},
		{"no tracefs", "all:no tracefs", syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS},
			"unsupported open oom tracer: tracepoint/oom/mark_victim: unsupported: tracepoint oom/mark_victim, needs tracefs mounted at /sys/kernel/tracing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := childCommand("open:" + tt.mode)
			cmd.SysProcAttr = &tt.attr
			out, err := cmd.Output()
			if err != nil {
				if tt.attr.Cloneflags != 0 && errors.Is(err, os.ErrPermission) {
					t.Skipf("user namespaces are not permitted here: %v", err)
				}
				t.Fatalf("child: %v\n%s", err, out)
			}
			if !strings.HasPrefix(string(out), tt.want) {
				t.Errorf("got %s\nwant %s", out, tt.want)
			}
			t.Logf("%s", out)
		})
	}
}

func TestErrorTexts(t *testing.T) {
	cause := os.ErrInvalid
	tests := []struct {
		err  error
		want string
	}{
		{&UnsupportedError{Feature: "BPF ring buffer", Needs: "kernel 5.8"}, "unsupported: BPF ring buffer, needs kernel 5.8"},
		{&UnsupportedError{Feature: "a", Needs: "b", Err: cause}, "unsupported: a, needs b: invalid argument"},
		{&PermissionError{Missing: []string{"CAP_SYS_ADMIN"}, Err: cause}, "not permitted: needs CAP_SYS_ADMIN: invalid argument"},
		{&PermissionError{Reason: "seccomp", Err: cause}, "not permitted: seccomp: invalid argument"},
	}
	for _, tt := range tests {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
		if strings.HasSuffix(tt.want, "argument") && !errors.Is(tt.err, cause) {
			t.Errorf("%q does not wrap its cause", tt.err)
		}
	}
}

func TestBefore511(t *testing.T) {
	for release, want := range map[string]bool{
		"5.10.0-32-cloud-amd64": true,
		"4.18.0-553.el8.x86_64": true,
		"5.4":                   true,
		"5.11.0":                false,
		"5.15.167":              false,
		"6.1.0-56-cloud-amd64":  false,
		"7.0-rc1":               false,
		"unknown":               false,
	} {
		if got := before511(release); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}
