package kube

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// RootFormula says which figure a kubelet takes for the memory in use on a whole cgroup v2 node, where the kernel has
// none. On v1 every kubelet reads usage_in_bytes of the root cgroup.
type RootFormula uint8

// The formulas; both less inactive_file of the root cgroup's memory.stat, 0 at least.
const (
	RootFromCgroup  RootFormula = iota // anon + file of the root cgroup's memory.stat
	RootFromMeminfo                    // MemTotal − MemFree of /proc/meminfo
)

// String returns the formula in words.
func (f RootFormula) String() string {
	if f == RootFromMeminfo {
		return "MemTotal - MemFree - inactive_file"
	}
	return "anon + file - inactive_file"
}

// The kubelet minors whose formula was read in their sources. opencontainers/runc took MemTotal − MemFree up to v1.1.8
// and anon + file from v1.1.9 on (libcontainer/cgroups/fs2/memory.go, opencontainers/runc#3933); the go.mod of
// Kubernetes names runc v1.0.1 for 1.22.0, v1.1.6 for the last patches of 1.24 to 1.27, v1.1.7 from 1.28.0 to 1.28.15,
// v1.1.10 from 1.29.0 on, and opencontainers/cgroups v0.0.6 for 1.36. cgroup v2 is stable in the kubelet since 1.25.
const (
	oldestKubelet  = 25
	anonFileSince  = 29
	newestKubelet  = 36
	supportedRange = "v1.25 to v1.36"
)

// RootFormulaOf chooses the formula by the kubelet's version as status.nodeInfo has it, such as "v1.36.3" or
// "v1.29.1-gke.100". The error says that the version is malformed or outside the range whose sources were read; the
// formula returned with it is then the one of the nearest known version, RootFromCgroup for a malformed one.
func RootFormulaOf(kubeletVersion string) (RootFormula, error) {
	minor, err := minorOf(kubeletVersion)
	if err != nil {
		return RootFromCgroup, fmt.Errorf("kubelet version %q: %w", kubeletVersion, err)
	}
	f := RootFromCgroup
	if minor < anonFileSince {
		f = RootFromMeminfo
	}
	if minor < oldestKubelet || minor > newestKubelet {
		return f, fmt.Errorf("kubelet version %q: outside %s: its working set of the node is taken as %s", kubeletVersion, supportedRange, f)
	}
	return f, nil
}

var errVersion = errors.New("want v1.<minor>.<patch>")

// minorOf returns the minor of a version v1.minor.patch with any suffix.
func minorOf(version string) (int, error) {
	rest, ok := strings.CutPrefix(version, "v")
	if !ok {
		return 0, errVersion
	}
	parts := strings.SplitN(rest, ".", 3)
	if len(parts) != 3 || parts[0] != "1" || parts[2] == "" || parts[2][0] < '0' || parts[2][0] > '9' {
		return 0, errVersion
	}
	minor, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil {
		return 0, fmt.Errorf("minor %q: not a number from 0 to 65535", parts[1])
	}
	return int(minor), nil
}
