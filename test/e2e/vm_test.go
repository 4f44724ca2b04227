//go:build e2e

package e2e

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/test/cluster"
	"spillway/test/scenario"
	"spillway/test/vm"
)

// vmEnv asks for the cases on a node with cgroup v2. They take minutes for each kernel, because the machine's processors
// are emulated. It holds the kernels, such as "6.1 6.12"; "1" means 6.1.
const vmEnv = "SPILLWAY_E2E_VM"

// TestVM runs the main cases on a node with pure cgroup v2 and a Debian kernel, from the same manifests.
func TestVM(t *testing.T) {
	asked := os.Getenv(vmEnv)
	if asked == "" {
		t.Skipf("takes minutes; set %s to the kernels, %q", vmEnv, vm.Kernels())
	}
	var kernels []vm.Kernel
	for _, k := range vm.Kernels() {
		if slices.Contains(strings.Fields(asked), string(k)) {
			kernels = append(kernels, k)
		}
	}
	if asked == "1" {
		kernels = vm.Kernels()[:1]
	}
	if len(kernels) == 0 {
		t.Fatalf("%s=%s: want some of %q", vmEnv, asked, vm.Kernels())
	}
	for _, k := range kernels {
		t.Run("kernel "+string(k), func(t *testing.T) {
			o := cluster.VMOptions{Kernel: k}
			if k != vm.Kernels()[0] {
				o.SystemReserved = map[string]string{"memory": "512Mi"} // allocatableMemory.available then differs from memory.available
			}
			onVM(t, o)
			t.Run("leak of 50 MiB a second", func(t *testing.T) { leak(t, 50, false) })
			t.Run("leak of 50 MiB a second, kubelet alone", func(t *testing.T) {
				res := runCase(t, scenario.Leak(50, false), scenario.KubeletAlone)
				if len(res.Kubelet()) == 0 {
					t.Error("the kubelet evicted nobody: the load does not reach its threshold, and the case proves nothing")
				}
			})
			const slow = time.Minute // emulated processors read slowly
			if k == vm.Kernels()[0] {
				t.Run("re-read file", func(t *testing.T) { rereadFile(t, slow, 0) })
				t.Run("brake", brakeOnVM)
				t.Run("brake of an agent that was killed", brakeLeftOnVM)
				t.Run("re-read file, kubelet alone", func(t *testing.T) { rereadFileKubeletAlone(t, slow, 0) })
				t.Run("replacement lands on it", replacementLands)
			} else {
				// Its multi-generational LRU does not make pages active that are read again: no shortage, nothing to do.
				t.Run("re-read file", func(t *testing.T) {
					if res := runCase(t, scenario.Reread(slow, 0), scenario.Enforce); len(res.Fates) != 0 {
						t.Errorf("pods went: %+v, want none", res.Fates)
					}
				})
			}
			t.Run("OOM kill", TestOOMKill)
			t.Run("AppArmor", appArmorOnVM)
			t.Run("margins", TestMargins)
		})
	}
}

// onVM adds a node in a virtual machine, and lets the cases run on it until the test ends.
func onVM(t *testing.T, o cluster.VMOptions) {
	t.Helper()
	v, err := runner.Cluster.AddVM(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	host := runner.Node
	runner.Node = v
	t.Cleanup(func() {
		runner.Node = host
		down, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if t.Failed() {
			for _, s := range cluster.VMServices() {
				t.Logf("last lines of %s:\n%s", s, v.Log(down, s, 20))
			}
			t.Logf("last lines of the console:\n%s", v.Console(20))
		}
		if err := v.Down(down); err != nil {
			t.Error(err)
		}
	})
}
