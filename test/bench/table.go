package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"spillway/cgroup"
)

// printReaders prints the ratios first, the absolute times after them.
func printReaders(out io.Writer, tree *cgroup.Tree, turns int, rows []row) {
	fmt.Fprintf(out, "%s; %d CPUs; medians of %d interleaved turns.\n\n", machine(tree), runtime.NumCPU(), turns)
	fmt.Fprintln(out, "| what | × bare preads | containerd/cgroups v3 is × dearer | opencontainers/cgroups is × dearer | allocations | ns per unit: Spillway / preads / containerd / opencontainers | targets |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|")
	for _, r := range rows {
		cells := []string{r.what, "–", "–", "–", fmt.Sprintf("%.0f", r.ours.allocs)}
		times := []string{fmt.Sprintf("%.0f", r.ours.ns())}
		if r.bare != nil {
			cells[1] = fmt.Sprintf("%.2f", r.ours.ns()/r.bare.ns())
			times = append(times, fmt.Sprintf("%.0f", r.bare.ns()))
		}
		for i, c := range r.other {
			if c != nil {
				cells[2+i] = fmt.Sprintf("%.1f", c.ns()/r.ours.ns())
				times = append(times, fmt.Sprintf("%.0f", c.ns()))
			}
		}
		cells = append(cells, strings.Join(times, " / ")+" per "+r.unit, verdict(r))
		fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
	}
}

// verdict says which targets of the design the row meets.
func verdict(r row) string {
	var missed []string
	if r.ours.allocs != 0 {
		missed = append(missed, "0 allocations")
	}
	if r.held {
		if r.ours.ns() > mostPreads*r.bare.ns() {
			missed = append(missed, fmt.Sprintf("≤ %.1f × preads", mostPreads))
		}
		for _, c := range r.other {
			if c != nil && c.ns() < leastTimes*r.ours.ns() {
				missed = append(missed, fmt.Sprintf("≥ %d × cheaper than %s", leastTimes, c.name))
			}
		}
	}
	if len(missed) > 0 {
		return "missed: " + strings.Join(missed, "; ")
	}
	return "met"
}

// machine names the kernel and its cgroups.
func machine(tree *cgroup.Tree) string {
	var u unix.Utsname
	release := "unknown"
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("Linux %s, cgroup %s with the memory controller on v%d", release, tree.Mode(), tree.MemoryVersion())
}
