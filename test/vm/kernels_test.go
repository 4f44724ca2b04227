//go:build vm

package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// cell is one package's tests on one hierarchy.
type cell struct {
	pkg    string
	cgroup Cgroup
	// skips are the only reasons for which a test may be skipped there.
	skips []string
	// must have run and passed there.
	must []string
	// run selects tests on a machine without swap; empty: all, with swap.
	run string
	// old: also on the kernel whose tracepoint passes a number only.
	old bool
}

var cells = []cell{
	{"cgroup", CgroupV2, []string{"needs v1", "writes fixtures", "needs no swap"},
		[]string{"TestKernelOOMKill", "TestKernelSwap", "TestKernelMemoryPressureOfThrashing", "TestKernelWatcherChurn",
			"TestKernelReclaimNeverSwaps", "TestKernelHigh", "TestKernelHighBelowUsage", "TestKernelHighInterrupted"}, "", false},
	{"cgroup", CgroupV1, []string{"needs v2", "needs a v2 hierarchy", "needs cgroup v2", "writes fixtures", "needs no swap"},
		[]string{"TestKernelOOMKill", "TestKernelSwap", "TestKernelGroupOfARenamedDirectory", "TestKernelWatcherChurn",
			"TestKernelReclaimNeverSwaps"}, "", false},
	{"cgroup", CgroupHybrid, []string{"needs v2", "needs a v2 hierarchy", "writes fixtures", "needs no swap"},
		[]string{"TestKernelOOMKill", "TestKernelSwap", "TestKernelGroupOfARenamedDirectory", "TestKernelWatcherChurn",
			"TestKernelReclaimNeverSwaps"}, "", false},
	{"cgroup", CgroupV2, []string{"needs v1", "needs swap"},
		[]string{"TestKernelReclaim", "TestKernelReclaimEndsEarly", "TestKernelReclaimFindsLess", "TestKernelReclaimOfARemovedGroup",
			"TestKernelReclaimOnAReadOnlyMount", "TestKernelHighBelowUsage"}, "Reclaim|High", false},
	{"cgroup", CgroupV1, []string{"needs v2", "needs swap"},
		[]string{"TestKernelReclaim", "TestKernelReclaimEndsEarly", "TestKernelReclaimRefused", "TestKernelReclaimOfARemovedGroup",
			"TestKernelReclaimOnAReadOnlyMount"}, "Reclaim|High", false},
	{"agent/sampler", CgroupV2, []string{"same inode number"}, []string{"TestGrowthReadsTheLeaves", "TestSweepAllocatesNothing", "TestChurn"}, "", false},
	{"agent/sampler", CgroupV1, []string{"same inode number"}, []string{"TestGrowthReadsTheLeaves", "TestSweepAllocatesNothing", "TestChurn"}, "", false},
	{"ebpf/oomkill", CgroupV2, []string{"needs clang"},
		[]string{"TestSingleKill", "TestHooks", "TestGroupKill", "TestThreads", "TestChildIsKilled", "TestExternalBTF", "TestBurst"}, "", true},
	{"ebpf/oomkill", CgroupV1, []string{"needs clang", "memory.oom.group is of cgroup v2"},
		[]string{"TestSingleKill", "TestHooks", "TestThreads", "TestChildIsKilled", "TestExternalBTF", "TestBurst"}, "", true},
	{"ebpf/oomkill/kmsg", CgroupV2, nil, []string{"TestKernelLogOfAnOOMKill"}, "", true},
	{"agent/oom", CgroupV2, []string{"needs v1"},
		[]string{"TestKernelOOMKillDomains", "TestKernelOOMGroupKill", "TestKernelOOMGroupKillsCountedTwice", "TestKernelOOMKillOfAChild", "TestKernelOOMKillOfAShortContainer",
			"TestKernelOOMBurst", "TestKernelOOMKillsMissed", "TestKernelOOMLadder", "TestKernelOOMOfTheNode"}, "TestKernelOOM", true},
	{"agent/oom", CgroupV1, []string{"memory.oom.group is of cgroup v2"},
		[]string{"TestKernelOOMKillDomains", "TestKernelOOMKillOfAChild", "TestKernelOOMKillOfAShortContainer",
			"TestKernelOOMBurst", "TestKernelOOMKillsMissed", "TestKernelOOMLadder", "TestKernelOOMOfTheNode"}, "TestKernelOOM", true},
	{"agent/oom", CgroupV2, []string{"needs v1"}, []string{"TestKernelBadInput", "TestKernelBadLockdown"}, badInput, false},
	{"agent", CgroupV2, []string{"needs v1"}, []string{"TestKernelBadLedger", "TestKernelBadClock", "TestKernelOOMKillReported"}, badInput, false},
	{"agent/waits", CgroupV2, nil, []string{"TestKernelThrottling"}, "TestKernel", false},
}

// badInput selects the tests that take from the node what the agent needs, for good, and one that needs nothing special.
const badInput = "TestKernelBad|TestKernelOOMKillReported"

// TestKernels runs the packages that read the kernel on kernels and hierarchies that this machine does not have.
func TestKernels(t *testing.T) {
	binaries := map[string]string{}
	for _, c := range cells {
		if binaries[c.pkg] != "" {
			continue
		}
		binaries[c.pkg] = testBinary(t, c.pkg)
	}
	for _, k := range append(Kernels(), Kernel5_10) {
		for _, c := range cells {
			if k == Kernel5_10 && !c.old {
				continue
			}
			if k == Kernel6_12 && c.cgroup != CgroupV2 {
				continue // Debian builds it without the v1 memory controller (CONFIG_MEMCG_V1)
			}
			name := fmt.Sprintf("%s on %s/%s", c.pkg, k, c.cgroup)
			switch c.run {
			case "":
			case badInput:
				name += " bad input"
			default:
				name += " without swap"
			}
			t.Run(name, func(t *testing.T) {
				s := Spec{
					Kernel: k, Cgroup: c.cgroup, Binary: binaries[c.pkg], Args: []string{"-test.v", "-test.timeout=8m"},
					MemoryMiB: 1536, DiskMiB: 600, SwapMiB: 256, Timeout: 10 * time.Minute, Progress: t.Output(),
				}
				if c.pkg == "agent" || c.pkg == "agent/oom" {
					s.Env = []string{"SPILLWAY_MACHINE_IS_A_TEST=1"}
				}
				if c.run != "" {
					s.SwapMiB, s.Args = 0, append(s.Args, "-test.run="+c.run)
				}
				if data := filepath.Join("..", "..", c.pkg, "testdata"); exists(data) {
					s.Files = map[string]string{"testdata": data}
				}
				res, err := Run(t.Context(), s)
				if err != nil {
					t.Fatal(err)
				}
				passed, skipped := verdicts(res.Output)
				t.Logf("exit code %d, %d tests passed, %d skipped, %.1f s", res.ExitCode, len(passed), len(skipped), res.Took.Seconds())
				if res.ExitCode != 0 {
					t.Errorf("exit code %d:\n%s", res.ExitCode, res.Output)
				}
				for name, reason := range skipped {
					if !slices.ContainsFunc(c.skips, func(s string) bool { return strings.Contains(reason, s) }) {
						t.Errorf("%s was skipped: %s", name, reason)
					}
				}
				for _, name := range c.must {
					if !passed[name] {
						t.Errorf("%s did not pass", name)
					}
				}
			})
		}
	}
}

var (
	verdictLine = regexp.MustCompile(`^ *--- (PASS|SKIP): (\S+) `)
	testLine    = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(\S+)`)
)

// verdicts reads what a test binary prints with -test.v: each line belongs to the test that was named last.
func verdicts(output string) (passed map[string]bool, skipped map[string]string) {
	passed, skipped = map[string]bool{}, map[string]string{}
	said, current := map[string]string{}, ""
	for line := range strings.Lines(output) {
		if m := testLine.FindStringSubmatch(line); m != nil {
			current = m[1]
		} else if m := verdictLine.FindStringSubmatch(line); m != nil {
			current = m[2]
			if m[1] == "PASS" {
				passed[current] = true
			} else {
				skipped[current] = said[current]
			}
		} else {
			said[current] += line
		}
	}
	return passed, skipped
}

func TestVerdicts(t *testing.T) {
	passed, skipped := verdicts("=== RUN   A\n=== RUN   A/x\n    a_test.go:1: needs v2\n=== RUN   A/y\n--- PASS: A (0.00s)\n    --- SKIP: A/x (0.00s)\n    --- PASS: A/y (0.00s)\n=== RUN   B\n    b_test.go:2: needs clang\n--- SKIP: B (0.00s)\nPASS\n")
	if len(passed) != 2 || !passed["A"] || !passed["A/y"] {
		t.Errorf("passed %v", passed)
	}
	if len(skipped) != 2 || !strings.Contains(skipped["A/x"], "needs v2") || !strings.Contains(skipped["B"], "needs clang") {
		t.Errorf("skipped %q", skipped)
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
