package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestTables(t *testing.T) {
	var out bytes.Buffer
	kernelTable(&out, "=== RUN   TestKernels/cgroup_on_6.1/v2\n    kernels_test.go:68: exit code 0, 750 tests passed, 4 skipped, 67.0 s\n"+
		"=== RUN   TestKernels/ebpf/oomkill_on_6.12/v2\n    boot again: machine with kernel 6.12, cgroup v2: not off\n    last lines\n    kernels_test.go:68: exit code 0, 87 tests passed, 1 skipped, 31.2 s\n")
	marginTable(&out, "    node_test.go:85: kubepods: kubelet 1013.3 MiB, agent -0.50 MiB (tolerance 18.1 MiB, sample\n    node_test.go:85: kubepods: kubelet 1.3 MiB, agent +1.00 MiB (tolerance 18.1 MiB, sample\n")
	replayLine(&out, "    leak_test.go:194: replay: 1841 verdicts and 254 decisions are the agent's, bit for bit; x\n    leak_test.go:194: replay: 9 verdicts and 1 decisions are the agent's, bit for bit; x\n")
	for _, want := range []string{"| cgroup | 6.1 | v2 | 0 | 750 | 4 | 67.0 |", "| ebpf/oomkill | 6.12 | v2 | 0 | 87 | 1 | 31.2 |", "| kubepods | 2 | 1.00 MiB | 1.00 MiB |", "of 2 agents gave 1850 verdicts and 255 decisions"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if got := narrow("| case      | who  |\n"); got != "| case | who |" {
		t.Errorf("%q", got)
	}
}
