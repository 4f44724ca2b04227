// Command results writes test/e2e/RESULTS.md from what 'make verify' left in a clone: its table, and what the logs of its
// steps say.
package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: results CLONE >test/e2e/RESULTS.md")
		os.Exit(2)
	}
	if err := write(os.Stdout, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "results:", err)
		os.Exit(1)
	}
}

func write(w io.Writer, clone string) error {
	commit, err := exec.Command("git", "-C", clone, "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return fmt.Errorf("commit of %s: %w", clone, err)
	}
	read := func(name string) string {
		data, rerr := os.ReadFile(filepath.Join(clone, "out", name))
		err = errors.Join(err, rerr)
		return string(data)
	}
	cases, steps, e2e, kernels := read("e2e.md"), read("verify/table.md"), read("verify/e2e.log"), read("verify/kernels.log")
	if err != nil {
		return err
	}
	fmt.Fprintf(w, head, strings.TrimSpace(string(commit)))
	for line := range strings.Lines(cases) {
		fmt.Fprintln(w, narrow(line))
	}
	_, rows, ok := strings.Cut(steps, "|---|---|---|\n")
	if !ok {
		return errors.New("verify/table.md has no table")
	}
	fmt.Fprintf(w, "\n| step | result | seconds |\n|---|---|---|\n%s\n", rows)
	kernelTable(w, kernels)
	marginTable(w, e2e)
	replayLine(w, e2e)
	return nil
}

const head = `# Results

What ` + "`make verify`" + ` saw in a clean clone at commit %s, on 2 CPUs and 24 GiB, kernel 6.18 (cgroup v1 memory, hybrid), Kubernetes
1.36.3. The nodes "v2" have pure cgroup v2, in virtual machines (software-emulated) with Debian's kernels 6.1 and 6.12, the
second with 512 MiB reserved for the system. The margin is that of memory.available; it is read every 20 ms (50 ms in a
virtual machine) from the kernel, apart from the agent; the kubelet's hard threshold lies 2 GiB under what is available when the
load starts, or further where the margin at start says so. An innocent is a pod that the case gives no reason to evict; a PDB
violation is a pod that was evicted although its PodDisruptionBudget allowed none; a false alarm is an innocent that Spillway
asked to evict, in vain or as a dry run too. "Detection + call + exit" runs from the start of the load to the end of the first
culprit: until it was asked to go, until the answer, until it was gone. "Margin / rate" is when the load would reach the
threshold. ` + "`go run ./test/e2e/results CLONE`" + ` writes this page.

`

var (
	wide  = regexp.MustCompile(` +`)
	cell  = regexp.MustCompile(`RUN   TestKernels/(\S+)_on_(\S+)/(\S+)\n(?:\s+boot again[^\n]*\n(?:[^=\n][^\n]*\n)*?)?\s+kernels_test\.go:\d+: exit code (\d+), (\d+) tests passed, (\d+) skipped, ([\d.]+) s`)
	apart = regexp.MustCompile(`node_test\.go:\d+: (the node|kubepods): kubelet [\d.]+ MiB, agent ([+-][\d.]+) MiB \(tolerance ([\d.]+) MiB`)
	again = regexp.MustCompile(`replay: (\d+) verdicts and (\d+) decisions are the agent's, bit for bit`)
)

// narrow takes the padding out of a row of a table.
func narrow(line string) string {
	line = wide.ReplaceAllString(strings.TrimSpace(line), " ")
	return strings.ReplaceAll(strings.ReplaceAll(line, "| ---", "|---"), "--- |", "---|")
}

func kernelTable(w io.Writer, log string) {
	fmt.Fprint(w, "Tests that read the kernel, in virtual machines (a skip is one of a short list of reasons, such as \"needs v1\"):\n\n"+
		"| package | kernel | cgroup | exit code | passed | skipped | seconds |\n|---|---|---|---|---|---|---|\n")
	for _, m := range cell.FindAllStringSubmatch(log, -1) {
		fmt.Fprintf(w, "| %s |\n", strings.Join(m[1:], " | "))
	}
}

func marginTable(w io.Writer, log string) {
	fmt.Fprint(w, "\nThe agent's working sets against the kubelet's own figures at the moment of the kubelet's measurement, at rest and while a pod\n"+
		"grows by 40 MiB/s, in the virtual machines by 15 (allowed are 16 MiB + 50 ms of slope):\n\n| of | comparisons | median apart | most apart |\n|---|---|---|---|\n")
	of := map[string][]float64{}
	for _, m := range apart.FindAllStringSubmatch(log, -1) {
		diff, _ := strconv.ParseFloat(m[2], 64) // the pattern lets nothing else through
		of[m[1]] = append(of[m[1]], math.Abs(diff))
	}
	for _, what := range slices.Sorted(maps.Keys(of)) {
		all := of[what]
		slices.Sort(all)
		fmt.Fprintf(w, "| %s | %d | %.2f MiB | %.2f MiB |\n", what, len(all), all[len(all)/2], all[len(all)-1])
	}
}

func replayLine(w io.Writer, log string) {
	looks, decisions, n := 0, 0, 0
	for _, m := range again.FindAllStringSubmatch(log, -1) {
		a, _ := strconv.Atoi(m[1])
		b, _ := strconv.Atoi(m[2])
		looks, decisions, n = looks+a, decisions+b, n+1
	}
	fmt.Fprintf(w, "\nReplay: the recordings of %d agents gave %d verdicts and %d decisions again, bit for bit.\n", n, looks, decisions)
}
