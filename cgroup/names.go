package cgroup

import "strings"

// The kubelet names a pod's cgroup "pod<uid>" (cgroupfs driver) or "kubepods-burstable-pod<uid with _>.slice" (systemd
// driver), see pkg/kubelet/cm/cgroup_manager_linux.go and pod_container_manager_linux.go. A static pod has the MD5 of
// its file as UID: 32 hex digits without dashes. The runtime names a container's cgroup by its id of 64 hex digits,
// with the systemd driver "<runtime>-<id>.scope".

// Quality-of-service classes in PodGroup.QoS.
const (
	BestEffort = "besteffort"
	Burstable  = "burstable"
	Guaranteed = "guaranteed"
)

const (
	slice = ".slice"
	scope = ".scope"
)

// ParsePodUID returns the UID in the name of a pod's directory, with dashes as the API server has it; the UID of a
// static pod has none. ok is false for every other name, also for one that only resembles a pod's.
func ParsePodUID(dir string) (uid string, ok bool) {
	if name, isSlice := strings.CutSuffix(dir, slice); isSlice {
		parents, last, found := cutLast(name, '-')
		uid, isPod := strings.CutPrefix(last, "pod")
		if !found || !isPod || !isKubepodsSlice(parents) {
			return "", false
		}
		if len(uid) == 36 {
			if strings.IndexByte(uid, '-') >= 0 {
				return "", false
			}
			uid = strings.ReplaceAll(uid, "_", "-")
		}
		return uid, isUID(uid)
	}
	uid, isPod := strings.CutPrefix(dir, "pod")
	if !isPod || !isUID(uid) {
		return "", false
	}
	return uid, true
}

// isKubepodsSlice reports that the name of a slice, without ".slice", is that of the kubepods slice or of a class in it,
// below any cgroup root.
func isKubepodsSlice(name string) bool {
	if rest, last, found := cutLast(name, '-'); found && (last == BestEffort || last == Burstable) {
		name = rest
	}
	return isKubepodsName(name)
}

// isKubepodsName reports "kubepods", or the slice form of a path that ends in it, such as "kubelet-kubepods".
func isKubepodsName(name string) bool {
	if rest, last, found := cutLast(name, '-'); found {
		return last == "kubepods" && isSlicePath(rest)
	}
	return name == "kubepods"
}

// isSlicePath accepts the characters that systemd leaves in unit names, with no empty component.
func isSlicePath(s string) bool {
	last := byte('-')
	for i := range len(s) {
		c := s[i]
		if c == '-' && last == '-' {
			return false
		}
		if !isAlnum(c) && strings.IndexByte(`-_.:\`, c) < 0 {
			return false
		}
		last = c
	}
	return last != '-'
}

// qosOf returns the class that the directory of a class stands for; parent is the name of the kubepods directory.
func qosOf(dir, parent string) (string, bool) {
	if base, isSlice := strings.CutSuffix(parent, slice); isSlice {
		name, ok := strings.CutSuffix(dir, slice)
		if !ok {
			return "", false
		}
		dir, ok = strings.CutPrefix(name, base+"-")
		if !ok {
			return "", false
		}
	}
	if dir == BestEffort || dir == Burstable {
		return dir, true
	}
	return "", false
}

// isKubepods reports that a directory can be the kubelet's.
func isKubepods(dir string) bool {
	if name, isSlice := strings.CutSuffix(dir, slice); isSlice {
		return isKubepodsName(name)
	}
	return dir == "kubepods"
}

// ParseContainerID returns the container id in the name of a leaf directory: "<id>", or "<runtime>-<id>" with or without
// ".scope". CRI-O's "crio-conmon-<id>.scope" holds the monitor of a container, not the container, and is refused like
// every other name. The sandbox ("pause") of a pod cannot be told from a container by its name.
func ParseContainerID(dir string) (id string, ok bool) {
	name, isScope := strings.CutSuffix(dir, scope)
	runtime, id, found := cutLast(name, '-')
	if !found {
		id = name
		if isScope {
			return "", false
		}
	} else if !isRuntime(runtime) {
		return "", false
	}
	if len(id) != 64 || !isHex(id) {
		return "", false
	}
	return id, true
}

// isRuntime accepts lower-case words joined by dashes, such as crio and cri-containerd.
func isRuntime(s string) bool {
	if len(s) > 32 {
		return false
	}
	for word := range strings.SplitSeq(s, "-") {
		if word == "" || strings.Contains(word, "conmon") {
			return false
		}
		for i := range len(word) {
			if c := word[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
				return false
			}
		}
	}
	return true
}

// isUID accepts 8-4-4-4-12 hex digits, and 32 without dashes.
func isUID(s string) bool {
	switch len(s) {
	case 32:
		return isHex(s)
	case 36:
		return s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' &&
			isHex(s[:8]) && isHex(s[9:13]) && isHex(s[14:18]) && isHex(s[19:23]) && isHex(s[24:])
	}
	return false
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	if i := strings.LastIndexByte(s, sep); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return "", s, false
}
