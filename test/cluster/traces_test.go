//go:build e2e

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// supervisorOf finds the supervisor among process 1's children, most of which are adopted shims.
func supervisorOf(t *testing.T, first int) (pid int) {
	t.Helper()
	eachProcess(func(p int, dir string) {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if strings.Contains(string(cmdline), "\x00supervise\x00") && under(p, first) {
			pid = p
		}
	})
	if pid == 0 {
		t.Fatal("no supervisor below process 1")
	}
	return pid
}

func eachProcess(do func(pid int, dir string)) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil {
			do(pid, d)
		}
	}
}

// networkNamespaces lists those of the processes in the cluster's PID namespace.
func networkNamespaces(t *testing.T, r Run) []string {
	t.Helper()
	s, pidfd, err := r.running()
	if err != nil {
		t.Fatal(err)
	}
	pidfd.Close()
	inside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.PID))
	if err != nil {
		t.Fatal(err)
	}
	var nets []string
	eachProcess(func(pid int, dir string) {
		ns, err1 := os.Readlink(filepath.Join(dir, "ns/pid"))
		status, err2 := os.ReadFile(filepath.Join(dir, "status"))
		net, err3 := os.Readlink(filepath.Join(dir, "ns/net"))
		if errors.Join(err1, err2, err3) != nil {
			return
		}
		// Containers have PID namespaces below the cluster's.
		nested := false
		for line := range strings.Lines(string(status)) {
			nested = nested || strings.HasPrefix(line, "NSpid:") && len(strings.Fields(line)) > 2
		}
		if (ns == inside || nested && under(pid, s.PID)) && !slices.Contains(nets, net) {
			nets = append(nets, net)
		}
	})
	return nets
}

// under says whether a process descends from another.
func under(pid, ancestor int) bool {
	for pid > 1 {
		if pid == ancestor {
			return true
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if pid, err = strconv.Atoi(f[1]); err != nil {
			return false
		}
	}
	return false
}

func nothingLike(what, cmdline string) (err error) {
	eachProcess(func(pid int, dir string) {
		if b, _ := os.ReadFile(filepath.Join(dir, "cmdline")); strings.Contains(string(b), cmdline) && pid != os.Getpid() {
			err = fmt.Errorf("%s: process %d still runs", what, pid)
		}
	})
	return err
}

// nothingOf says whether a process of the cluster still runs: its programs name the run folder, a shim the socket.
func nothingOf(r Run) error {
	mine := nothingLike("the cluster's programs", "\x00"+r.Dir)
	if !lastOwner(r) {
		return mine // the rest is another cluster's by now
	}
	procs, err := KubepodsProcesses()
	if err == nil && len(procs) > 0 {
		err = fmt.Errorf("processes in kubepods: %v", procs)
	}
	return errors.Join(err, mine,
		nothingLike("the kubelet", "--config=/var/lib/kubelet/config.yaml"),
		nothingLike("a shim", "containerd-shim-runc-v2"),
	)
}

// machine tells when folders of the machine were changed which a node has too; those that are not there are left out.
func machine() map[string]time.Time {
	m := map[string]time.Time{}
	for _, name := range []string{
		"/etc/cni", "/etc/cni/net.d", "/etc/containerd", "/etc/kubernetes", "/opt", "/opt/cni", "/run/containerd", "/usr/libexec/kubernetes",
		"/var/lib/cni", "/var/lib/containerd", "/var/lib/etcd", "/var/lib/kubelet", "/var/lib/spillway", "/var/log/containers", "/var/log/pods",
	} {
		if fi, err := os.Stat(name); err == nil {
			m[name] = fi.ModTime()
		}
	}
	return m
}

// lastOwner says whether no other cluster was started since this one: another test may have waited for it to end.
func lastOwner(r Run) bool {
	f, err := os.Open(machineLock())
	if err != nil {
		return false
	}
	defer f.Close()
	return owner(f) == r.Dir
}

// traceless fails when something of the cluster is left on the machine, or the machine's folders are not as before.
func traceless(t *testing.T, r Run, before map[string]time.Time, nets []string) {
	t.Helper()
	if err := nothingOf(r); err != nil {
		t.Error(err)
	}
	if roots, err := KubepodsRoots(); lastOwner(r) && (err != nil || len(roots) > 0) {
		t.Errorf("kubepods cgroups are left: %v, %v", roots, err)
	}
	eachProcess(func(pid int, dir string) {
		mounts, _ := os.ReadFile(filepath.Join(dir, "mountinfo"))
		for _, mark := range []string{r.Dir + "/", r.Dir + " "} {
			if strings.Contains(string(mounts), mark) {
				t.Errorf("process %d still has a mount of %s", pid, mark)
			}
		}
		if net, _ := os.Readlink(filepath.Join(dir, "ns/net")); slices.Contains(nets, net) {
			t.Errorf("process %d is still in %s", pid, net)
		}
	})
	// A namespace without processes can be held by a mount; all that are held are listed by their number.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nets {
		if strings.Contains(string(mounts), n) {
			t.Errorf("%s is still mounted", n)
		}
	}
	if _, err := os.Stat(r.State()); err == nil {
		if err := Down(t.Context(), e2eName); err != nil {
			t.Error(err)
		}
	}
	for name, changed := range machine() {
		if !changed.Equal(before[name]) {
			t.Errorf("%s was made or changed on the machine", name)
		}
	}
}
