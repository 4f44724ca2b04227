package status

import (
	"bytes"
	"testing"
)

// TestWriteChecks compares the whole output with testdata/checks.txt.
func TestWriteChecks(t *testing.T) {
	var out bytes.Buffer
	if err := WriteChecks(&out, []Check{
		{Name: "cgroup", State: OK, Detail: "v2, memory controller v2 at /sys/fs/cgroup"},
		{Name: "cri", State: Degraded, Detail: "dial \x1b[2J: no such file", Means: "pods are mapped by cgroup names", Fix: "mount the runtime's folder"},
		{Name: "permissions", State: Failed, Detail: "missing: create pods/eviction (evictions)", Means: "nobody is evicted", Fix: "apply deploy/base/rbac.yaml"},
		{Name: "journald", State: Degraded, Detail: "not there", Means: "the log goes to stderr only"},
	}); err != nil {
		t.Fatal(err)
	}
	golden(t, "checks.txt", out.String())
}
