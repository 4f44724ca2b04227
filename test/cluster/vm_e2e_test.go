//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/deploy/image"
	"spillway/test/cluster/node"
	"spillway/test/vm"
)

// vmEnv asks for the tests with a node in a virtual machine, which take minutes.
const vmEnv = "SPILLWAY_E2E_VM"

func TestVirtualNode(t *testing.T) {
	if os.Getenv(vmEnv) == "" {
		t.Skipf("takes minutes; set %s=1", vmEnv)
	}
	before := machine()
	c := Start(t, Options{Name: e2eName})
	r := c.Run()
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute)
	defer cancel()

	t.Run("one that does not boot shows its console", func(t *testing.T) {
		facts, err := c.Facts(ctx)
		if err != nil {
			t.Fatal(err)
		}
		o := VMOptions{Name: "broken", MemoryMiB: 1536, ReadyTimeout: time.Minute}
		if err := o.complete(); err != nil {
			t.Fatal(err)
		}
		v, err := c.place(o, facts)
		if err != nil {
			t.Fatal(err)
		}
		request, err := v.prepare(ctx, facts.Programs)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(request.Machine.Initrd, 1<<20); err != nil {
			t.Fatal(err)
		}
		err = v.boot(ctx, request)
		if err == nil || !strings.Contains(err.Error(), "last lines of its console") || !strings.Contains(err.Error(), "Kernel panic") {
			t.Errorf("error %v, want the kernel's panic", err)
		}
		facts, err = c.Facts(ctx)
		if err != nil || len(facts.VMs) > 0 || !facts.Kubelet || facts.Failed != "" {
			t.Errorf("facts %+v, %v afterwards", facts, err)
		}
	})

	begin := time.Now()
	v, err := c.AddVM(ctx, VMOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("node %s ready after %.1f s, with all that is built before", v.NodeName(), time.Since(begin).Seconds())

	t.Run("figures of both nodes are their kubelets'", func(t *testing.T) {
		kernel, err := v.Exec(ctx, nil, "uname", "-r")
		if err != nil || !strings.HasPrefix(kernel, string(vm.Kernel6_1)) {
			t.Errorf("kernel %q, %v", kernel, err)
		}
		for name, check := range map[string]func() (ours, theirs int64, err error){
			"host": func() (int64, int64, error) {
				m, err := c.Memory()
				if err != nil {
					return 0, 0, err
				}
				theirs, _, err := c.Available(ctx)
				return m.Available(), theirs, err
			},
			"virtual": func() (int64, int64, error) {
				m, err := v.Memory(ctx)
				if err != nil {
					return 0, 0, err
				}
				theirs, _, err := v.Available(ctx)
				return m.Available(), theirs, err
			},
		} {
			eventually(t, ctx, "summary and kernel of the "+name+" node to agree", func() error {
				ours, theirs, err := check()
				if d := ours - theirs; err == nil && (d > 64<<20 || d < -64<<20) {
					err = fmt.Errorf("kernel %d, kubelet %d", ours, theirs)
				}
				return err
			})
		}
		m, err := v.Memory(ctx)
		if err != nil || m.Available()-v.HardThreshold() > DefaultMargin || m.Available()-v.HardThreshold() < DefaultMargin-512<<20 {
			t.Errorf("margin %d MiB, %v; want about 2 GiB", (m.Available()-v.HardThreshold())>>20, err)
		}
	})
	t.Run("pods of both nodes run and reach the API server and each other's address", func(t *testing.T) {
		// The image comes after the boot, under a name that no node has yet.
		const late = "localhost/late:1"
		own, err := buildOwn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		archive := filepath.Join(t.TempDir(), "late.tar")
		if _, err := image.WriteFile(archive, image.Options{Ref: late, Entrypoint: []string{"/workload"}, Files: []image.File{
			{Path: "/workload", Source: filepath.Join(own, "workload")}, {Path: "/probe", Source: filepath.Join(own, "probe")},
		}}); err != nil {
			t.Fatal(err)
		}
		if err := c.LoadImage(ctx, archive); err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{nodeName, v.NodeName()} {
			if err := c.Apply(ctx, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: on-%[1]s}\nspec:\n  nodeName: %[1]s\n  containers: [{name: main, image: %[2]q, imagePullPolicy: Never, args: [hold, 16Mi]}]\n", n, late)); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range []string{nodeName, v.NodeName()} {
			if _, err := c.Kubectl(ctx, "wait", "--for=condition=Ready", "pod/on-"+n, "--timeout=60s"); err != nil {
				t.Fatal(err)
			}
			out, err := c.Kubectl(ctx, "exec", "on-"+n, "--", "/probe", "/version")
			if err != nil || !strings.Contains(out, "gitVersion") {
				t.Errorf("a pod on %s asks the API server: %q, %v", n, out, err)
			}
			if out, err := c.Kubectl(ctx, "logs", "on-"+n); err != nil || !strings.Contains(out, "held 16777216 bytes") {
				t.Errorf("logs %q, %v", out, err)
			}
		}
		ip, err := c.Kubectl(ctx, "get", "pod", "on-"+v.NodeName(), "-o", "jsonpath={.status.podIP}")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Exec(ctx, nil, "ping", "-c1", "-W5", ip); err != nil {
			t.Errorf("the virtual node reaches its pod: %v", err)
		}
		// Nothing listens there: an answer of the pod's own kernel is what counts.
		conn, err := r.dial(ctx, "tcp", ip+":9")
		if err == nil {
			conn.Close()
		} else if !strings.Contains(err.Error(), "refused") {
			t.Errorf("the pod on the virtual node does not answer: %v", err)
		}
	})
	t.Run("the margin can be set and the memory watched", func(t *testing.T) {
		if _, err := v.SetMargin(ctx, 700<<20); err != nil {
			t.Fatal(err)
		}
		if out, err := v.Exec(ctx, nil, "cat", node.KubeletConfig); err != nil || !strings.Contains(out, fmt.Sprint(v.HardThreshold())) {
			t.Errorf("configuration %q, %v", out, err)
		}
		watch, stop := context.WithTimeout(ctx, 3*time.Second)
		defer stop()
		var readings []vm.MemorySample
		if err := v.WatchMemory(watch, 50*time.Millisecond, func(m vm.MemorySample) { readings = append(readings, m) }); err != nil {
			t.Error(err)
		}
		if len(readings) < 15 {
			t.Errorf("%d readings in 3 s", len(readings))
		}
	})
	t.Run("down removes the node, and a crash everything", func(t *testing.T) {
		if err := v.Down(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Kubectl(ctx, "get", "node", v.NodeName()); err == nil {
			t.Error("the node is still in the API")
		}
		if err := nothingLike("the virtual machine", vm.QEMU+"\x00"); err != nil {
			t.Error(err)
		}
		if _, err := c.AddVM(ctx, VMOptions{MemoryMiB: 3072, Margin: 512 << 20, Kernel: vm.Kernel6_12}); err != nil {
			t.Fatal(err)
		}
		nets := networkNamespaces(t, r)
		s, pidfd, err := r.running()
		if err != nil {
			t.Fatal(err)
		}
		defer pidfd.Close()
		if err := syscall.Kill(supervisorOf(t, s.PID), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := waitPidfd(ctx, pidfd); err != nil {
			t.Fatal(err)
		}
		if err := nothingLike("the virtual machine", vm.QEMU+"\x00"); err != nil {
			t.Error(err)
		}
		if err := c.Down(ctx); err != nil {
			t.Error(err)
		}
		traceless(t, r, before, nets)
	})
}
