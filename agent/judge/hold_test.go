package judge

import (
	"strings"
	"testing"
	"time"
)

// inOrder are conditions under which everything may be done.
func inOrder() Conditions {
	return Conditions{PauseKnown: true, PodsSynced: true, NodeKnown: true, MapMost: time.Minute}
}

func TestConditions(t *testing.T) {
	for _, tc := range []struct {
		name    string
		change  func(c *Conditions)
		reclaim bool // it holds the reclaim of page cache too
		why     string
	}{
		{"paused", func(c *Conditions) { c.Paused, c.PauseDetail = true, "by hand" }, true, "by hand"},
		{"pause-unknown", func(c *Conditions) { c.PauseKnown, c.PauseDetail = false, "403" }, true, "403"},
		{"cgroup-namespace", func(c *Conditions) { c.Namespaced = true }, true, "one container"},
		{"stale-sample", func(c *Conditions) { c.SampleAge, c.SampleMost = 2100*time.Millisecond, 2*time.Second }, true, "2.1 s old"},
		{"", func(c *Conditions) { c.SampleAge, c.SampleMost = 1900*time.Millisecond, 2*time.Second }, false, ""},
		{"stale-sample", func(c *Conditions) { c.SampleAge = 1100 * time.Millisecond }, true, "1.1 s old"},
		{"late-loop", func(c *Conditions) { c.Late = 1100 * time.Millisecond }, true, "1.1 s late"},
		{"pods-unknown", func(c *Conditions) { c.PodsSynced = false }, false, "not known"},
		{"pods-stale", func(c *Conditions) { c.PodsFault, c.PodsAge = "refused", 61*time.Second }, false, "refused"},
		{"", func(c *Conditions) { c.PodsFault, c.PodsAge = "refused", 59*time.Second }, false, ""},
		{"pods-stale", func(c *Conditions) { c.PodsAge = 181 * time.Second }, false, "181 s ago"},
		{"map-stale", func(c *Conditions) { c.MapAge, c.MapFault = 61*time.Second, "EIO" }, false, "61.0 s old EIO"},
		{"node-unknown", func(c *Conditions) { c.NodeKnown = false }, false, "not known"},
		{"runtime-hung", func(c *Conditions) { c.RuntimeHung, c.RuntimeFault = true, "deadline" }, false, "deadline"},
		{"kubelet-dead", func(c *Conditions) { c.KubeletDead = "its Lease is old" }, false, "its Lease is old"},
	} {
		c := inOrder()
		tc.change(&c)
		open := func() (string, string) { return "", "" }
		if name, why := c.Evict(open); name != tc.name || !strings.Contains(why, tc.why) || (name == "") != (why == "") {
			t.Errorf("%s: an eviction is held by %q: %q", tc.name, name, why)
		}
		want := ""
		if tc.reclaim {
			want = tc.name
		}
		if name, _ := c.Reclaim(); name != want {
			t.Errorf("%s: a reclaim is held by %q, want %q", tc.name, name, want)
		}
	}
}

// The first gate that is closed is told; the verdict comes after what people and the mount of the cgroups say.
func TestOrderOfTheGates(t *testing.T) {
	c := Conditions{Paused: true, Namespaced: true, SampleAge: time.Hour, Late: time.Hour, RuntimeHung: true, KubeletDead: "x"}
	verdict := func() (string, string) { return "cache", "it is page cache" }
	var got []string
	for range 20 {
		name, _ := c.Evict(verdict)
		if name == "" {
			break
		}
		got = append(got, name)
		switch name {
		case "paused":
			c.Paused = false
		case "pause-unknown":
			c.PauseKnown = true
		case "cgroup-namespace":
			c.Namespaced = false
		case "cache":
			verdict = func() (string, string) { return "", "" }
		case "stale-sample":
			c.SampleAge = 0
		case "late-loop":
			c.Late = 0
		case "pods-unknown":
			c.PodsSynced = true
		case "node-unknown":
			c.NodeKnown = true
		case "runtime-hung":
			c.RuntimeHung = false
		case "kubelet-dead":
			c.KubeletDead = ""
		}
	}
	if text := strings.Join(got, " "); text != "paused pause-unknown cgroup-namespace cache stale-sample late-loop pods-unknown node-unknown runtime-hung kubelet-dead" {
		t.Error(text)
	}
}
