package cgroup

import (
	"strings"
	"testing"
)

const (
	testUID  = "0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69"
	unitUID  = "0b3c0c5e_8c4e_4a25_9f0e_1f2d3c4b5a69"
	testHash = "0123456789abcdef0123456789abcdef"
)

func TestParsePodUID(t *testing.T) {
	for _, c := range []struct{ name, dir, uid string }{
		{"cgroupfs", "pod" + testUID, testUID},
		{"cgroupfs, static pod", "pod" + testHash, testHash},
		{"systemd, guaranteed", "kubepods-pod" + unitUID + ".slice", testUID},
		{"systemd, burstable", "kubepods-burstable-pod" + unitUID + ".slice", testUID},
		{"systemd, best effort", "kubepods-besteffort-pod" + unitUID + ".slice", testUID},
		{"systemd, static pod", "kubepods-burstable-pod" + testHash + ".slice", testHash},
		{"systemd, under a cgroup root", "kubelet-kubepods-burstable-pod" + unitUID + ".slice", testUID},
		{"systemd, under a deep cgroup root", "a-b_c-kubepods-pod" + unitUID + ".slice", testUID},

		{"empty", "", ""},
		{"no UID", "pod", ""},
		{"no prefix", testUID, ""},
		{"upper case", "pod" + strings.ToUpper(testUID), ""},
		{"upper case prefix", "Pod" + testUID, ""},
		{"short", "pod" + testUID[:35], ""},
		{"long", "pod" + testUID + "0", ""},
		{"dash in the wrong place", "pod0b3c0c5e8-c4e-4a25-9f0e-1f2d3c4b5a69", ""},
		{"no hex", "podzb3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69", ""},
		{"underscores without a slice", "pod" + unitUID, ""},
		{"dashes in a slice", "kubepods-pod" + testUID + ".slice", ""},
		{"a mix in a slice", "kubepods-burstable-pod0b3c0c5e_8c4e-4a25_9f0e_1f2d3c4b5a69.slice", ""},
		{"slice without kubepods", "pod" + unitUID + ".slice", ""},
		{"slice of another parent", "user-pod" + unitUID + ".slice", ""},
		{"slice of an unknown class", "kubepods-premium-pod" + unitUID + ".slice", ""},
		{"two classes", "kubepods-burstable-besteffort-pod" + unitUID + ".slice", ""},
		{"only resembles", "mykubepods-pod" + unitUID + ".slice", ""},
		{"scope", "kubepods-pod" + unitUID + ".scope", ""},
		{"empty component", "-kubepods-pod" + unitUID + ".slice", ""},
		{"two dashes", "kubelet--kubepods-pod" + unitUID + ".slice", ""},
		{"space in the cgroup root", "ku be-kubepods-pod" + unitUID + ".slice", ""},
		{"newline", "pod" + testUID + "\n", ""},
		{"NUL", "pod" + testUID[:35] + "\x00", ""},
		{"path", "/kubepods/pod" + testUID, ""},
		{"path in a slice", "../kubepods-pod" + unitUID + ".slice", ""},
		{"class", "kubepods-burstable.slice", ""},
		{"the slice itself", ".slice", ""},
	} {
		uid, ok := ParsePodUID(c.dir)
		if uid != c.uid && ok || ok != (c.uid != "") {
			t.Errorf("%s: ParsePodUID(%q) = %q, %v, want %q", c.name, c.dir, uid, ok, c.uid)
		}
	}
}

func TestParseContainerID(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct {
		name, dir string
		ok        bool
	}{
		{"cgroupfs", id, true},
		{"containerd, systemd", "cri-containerd-" + id + ".scope", true},
		{"CRI-O, systemd", "crio-" + id + ".scope", true},
		{"CRI-O, cgroupfs", "crio-" + id, true},
		{"Docker, systemd", "docker-" + id + ".scope", true},

		{"empty", "", false},
		{"CRI-O's monitor", "crio-conmon-" + id + ".scope", false},
		{"CRI-O's monitor, cgroupfs", "crio-conmon-" + id, false},
		{"a monitor by another name", "0conmon-" + id, false},
		{"scope without a runtime", id + ".scope", false},
		{"slice", "docker-" + id + ".slice", false},
		{"short", id[:63], false},
		{"long", id + "0", false},
		{"upper case", strings.ToUpper(id), false},
		{"no hex", "g" + id[1:], false},
		{"no runtime", "-" + id + ".scope", false},
		{"empty word", "cri--containerd-" + id + ".scope", false},
		{"upper case runtime", "Docker-" + id + ".scope", false},
		{"long runtime", strings.Repeat("r", 33) + "-" + id + ".scope", false},
		{"slash", "a/b-" + id + ".scope", false},
		{"dots", "..-" + id + ".scope", false},
		{"newline", id + "\n", false},
		{"init scope of a container", "init.scope", false},
		{"service", "kubelet.service", false},
	} {
		got, ok := ParseContainerID(c.dir)
		if ok != c.ok || ok && got != id {
			t.Errorf("%s: ParseContainerID(%q) = %q, %v, want %v", c.name, c.dir, got, ok, c.ok)
		}
	}
}

func TestQoSOfDirectory(t *testing.T) {
	for _, c := range []struct{ dir, parent, want string }{
		{"burstable", "kubepods", Burstable},
		{"besteffort", "kubepods", BestEffort},
		{"kubepods-burstable.slice", "kubepods.slice", Burstable},
		{"kubelet-kubepods-besteffort.slice", "kubelet-kubepods.slice", BestEffort},
		{"guaranteed", "kubepods", ""},
		{"kubepods-burstable.slice", "kubelet-kubepods.slice", ""},
		{"kubepods-burstable.slice", "kubepods", ""},
		{"burstable", "kubepods.slice", ""},
		{"burstable.slice", "kubepods.slice", ""},
	} {
		if got, ok := qosOf(c.dir, c.parent); ok != (c.want != "") || got != c.want {
			t.Errorf("qosOf(%q, %q) = %q, %v, want %q", c.dir, c.parent, got, ok, c.want)
		}
	}
}
