package triage

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

var (
	noon  = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	limit = uint64(64 << 20)
)

func at(seconds float64) time.Time { return noon.Add(time.Duration(seconds * float64(time.Second))) }

// ended is a container that ran from noon on, with everything known and nothing found.
func ended(code int32, seconds float64, more ...func(*Case)) *Case {
	c := &Case{Container: "main", Code: code, Reason: "Error", Started: noon, Finished: at(seconds).Truncate(time.Second), Pod: Pod{Known: true, Grace: 30 * time.Second}}
	for _, f := range more {
		f(c)
	}
	return c
}

func kill(seconds float64, of string) func(*Case) {
	return func(c *Case) {
		k := Kill{At: at(seconds), PID: 42, Process: "java", LimitOf: of}
		if of != "none" {
			k.Limit = &limit
		}
		c.Kills = append(c.Kills, k)
	}
}

func reason(r string) func(*Case)  { return func(c *Case) { c.Reason = r } }
func says(text string) func(*Case) { return func(c *Case) { c.Message = text } }
func blind(why string) func(*Case) { return func(c *Case) { c.Blind = why } }

// folded is an Event that the kubelet has seen before and after.
func folded(kind, text string, count int32, first, last float64) func(*Case) {
	return func(c *Case) {
		event(kind, "main", text, count, last)(c)
		c.Events[len(c.Events)-1].First = at(first)
	}
}

func event(kind, of, text string, count int32, seconds float64) func(*Case) {
	return func(c *Case) {
		c.Events = append(c.Events, Event{Warning: kind != "Killing", Reason: kind, Container: of, Message: text, Count: count, First: at(seconds).Truncate(time.Second), Last: at(seconds).Truncate(time.Second)})
	}
}

// alive gives it a liveness probe that may stop it 4 s after its start.
func alive(c *Case) {
	c.Liveness = &Probe{Delay: 2 * time.Second, Period: time.Second, Timeout: time.Second, Failures: 3}
	c.Pod.Grace = 2 * time.Second
}

func starting(c *Case) {
	c.Startup = &Probe{Delay: 0, Period: 2 * time.Second, Timeout: time.Second, Failures: 5}
}

// deleted at a moment, with a grace period.
func deleted(seconds float64, grace time.Duration) func(*Case) {
	return func(c *Case) { c.Pod.Deleted, c.Pod.DeleteGrace = at(seconds).Add(grace), grace }
}

func status(r, text string) func(*Case) {
	return func(c *Case) { c.Pod.Reason, c.Pod.Message = r, text }
}

func disrupted(r string, seconds float64) func(*Case) {
	return func(c *Case) { c.Pod.Disruption, c.Pod.DisruptedAt = r, at(seconds) }
}

func evicted(seconds float64, short bool) func(*Case) {
	return func(c *Case) { c.Evicted = &Evicted{Decision: "0102-1", At: at(seconds), Short: short} }
}

func volume(name string, used, capacity uint64) func(*Case) {
	return func(c *Case) { c.Volumes = append(c.Volumes, Volume{Name: name, Used: used, Capacity: capacity}) }
}

const (
	livenessFailed = "Liveness probe failed: dial tcp: connection refused"
	livenessKill   = "Container main failed liveness probe, will be restarted"
)

var cases = []struct {
	name    string
	c       *Case
	want    Cause
	how     Certainty
	limitOf string
	next    string // part of the sentence
}{
	{"OOM at its own limit", ended(137, 10.4, kill(10.3, "container"), reason("OOMKilled")), OOM, Known, "container", "memory limit"},
	{"OOM at its own limit, the runtime calls it Error", ended(137, 10.4, kill(10.3, "container")), OOM, Known, "container", "memory limit"},
	{"OOM at the pod's limit", ended(137, 10, kill(10, "pod"), reason("OOMKilled")), OOM, Known, "pod", "common limit"},
	{"OOM of the node as a whole", ended(137, 10, kill(10, "none")), OOM, Known, "none", "what filled the node"},
	{"a shell passes its child's OOM kill on", ended(137, 10.9, kill(9.8, "container")), OOM, Known, "container", "memory limit"},
	{"a shell ends with 1 right after its child's OOM kill", ended(1, 10.4, kill(10.3, "container"), reason("OOMKilled")), OOMChild, Likely, "container", "memory limit"},
	{"OOMKilled where kills are not seen", ended(137, 10, reason("OOMKilled"), blind("the OOM tracer is degraded: no BTF")), OOM, Likely, "unknown", "dmesg"},
	{"OOMKilled with code 1 where kills are not seen", ended(1, 10, reason("OOMKilled"), blind("no BTF")), OOMChild, Likely, "unknown", "dmesg"},
	{"OOMKilled for a child long ago, SIGKILL now by nobody known", ended(137, 600, kill(60, "container"), reason("OOMKilled")), Unknown, NotKnown, "", "systemd-oomd"},
	{"an OOM kill of the run before", ended(137, 10, kill(-8, "container")), Unknown, NotKnown, "", "systemd-oomd"},
	{"an OOM kill of the run after", ended(137, 10, kill(14, "container")), Unknown, NotKnown, "", "systemd-oomd"},
	{"liveness probe, it ignores SIGTERM", ended(137, 7, alive, event("Killing", "main", livenessKill, 1, 5), event("Unhealthy", "main", livenessFailed, 3, 4)), Liveness, Known, "", "longer to start"},
	{"liveness probe, it obeys SIGTERM", ended(143, 5, alive, event("Killing", "main", livenessKill, 1, 5)), Liveness, Known, "", "longer to start"},
	{"liveness probe, it ends with a code of its own", ended(2, 5, alive, event("Killing", "main", livenessKill, 1, 5)), Liveness, Known, "", "longer to start"},
	{"liveness probe after hours", ended(137, 7200, alive, event("Killing", "main", livenessKill, 1, 7198)), Liveness, Known, "", "hang"},
	{"liveness probe and a full volume", ended(137, 7200, alive, event("Killing", "main", livenessKill, 1, 7198), volume("data", 100, 100)), Liveness, Known, "", "Volume data is 100 % full"},
	{"liveness probe, without the kubelet's Killing", ended(137, 7, alive, event("Unhealthy", "main", livenessFailed, 3, 4)), Liveness, Likely, "", "longer to start"},
	{"one failed probe is too few", ended(137, 7, alive, event("Unhealthy", "main", livenessFailed, 1, 4)), Unknown, NotKnown, "", "systemd-oomd"},
	{"a probe that failed long before", ended(137, 7200, alive, event("Unhealthy", "main", livenessFailed, 9, 100)), Unknown, NotKnown, "", "systemd-oomd"},
	{"a failed readiness probe kills nobody", ended(137, 7, alive, event("Unhealthy", "main", "Readiness probe failed: 503", 9, 6)), Unknown, NotKnown, "", "systemd-oomd"},
	{"the probe of another container", ended(137, 7, alive, event("Killing", "side", "Container side failed liveness probe, will be restarted", 1, 5)), Unknown, NotKnown, "", "systemd-oomd"},
	{"the liveness kill of the run before", ended(137, 70, alive, event("Killing", "main", livenessKill, 1, -20)), Unknown, NotKnown, "", "systemd-oomd"},
	{"liveness kill that was folded with the one of the next run", ended(137, 5, alive, folded("Killing", livenessKill, 2, 3, 8)), Liveness, Known, "", "longer to start"},
	{"liveness kill that was folded with those before and after", ended(137, 5, alive, folded("Killing", livenessKill, 3, -20, 8)), Liveness, Likely, "", "longer to start"},
	{"liveness kills before and after, none of this run", ended(137, 5, alive, folded("Killing", livenessKill, 2, -20, 8)), Unknown, NotKnown, "", "systemd-oomd"},
	{"failed probes that were folded with those of the next run", ended(137, 5, alive, folded("Unhealthy", livenessFailed, 5, 2, 9)), Liveness, Likely, "", "longer to start"},
	{"liveness kill while the runtime says OOMKilled, no kill seen", ended(137, 7, alive, reason("OOMKilled"), event("Killing", "main", livenessKill, 1, 5)), Unknown, NotKnown, "", "systemd-oomd"},
	{"liveness kill long after the OOM kill of a child", ended(137, 70, alive, reason("OOMKilled"), kill(20, "container"), event("Killing", "main", livenessKill, 1, 68)), Liveness, Known, "", "hang"},
	{"OOM kill while the liveness probe stops it", ended(137, 7, alive, kill(7, "container"), event("Killing", "main", livenessKill, 1, 6)), OOM, Likely, "container", "memory limit"},
	{"startup probe", ended(137, 42, starting, event("Killing", "main", "Container main failed startup probe, will be restarted", 1, 11)), Startup, Known, "", "startupProbe"},
	{"deleted, it sits the grace period out", ended(137, 40, deleted(10, 30*time.Second)), GraceExpired, Known, "", "preStop"},
	{"deleted, killed long before the grace period is over", ended(137, 15, deleted(10, 30*time.Second)), Unknown, NotKnown, "", "systemd-oomd"},
	{"deleted after it had ended", ended(137, 10, deleted(20, 30*time.Second)), Unknown, NotKnown, "", "systemd-oomd"},
	{"deleted, it ends on SIGTERM", ended(143, 11, deleted(10, 30*time.Second)), Terminated, Known, "", "Nothing has to be done"},
	{"deleted, it answers SIGTERM with 1", ended(1, 11, deleted(10, 30*time.Second)), Terminated, Likely, "", "Nothing has to be done"},
	{"deleted, it crashes on the way out", ended(139, 11, deleted(10, 30*time.Second)), Crash, Known, "", "core dump"},
	{"evicted by the kubelet", ended(137, 10, status("Evicted", "The node was low on resource: memory.")), Eviction, Known, "", "short of"},
	{"evicted by the kubelet while the runtime says OOMKilled", ended(137, 10, reason("OOMKilled"), status("Evicted", "low on memory")), Eviction, Known, "", "short of"},
	{"evicted by Spillway", ended(137, 40, evicted(9, true), deleted(10, 30*time.Second)), Eviction, Known, "", "short of"},
	{"evicted by Spillway after it had crashed", ended(1, 5, evicted(9, false)), Application, Likely, "", "--previous"},
	{"evicted through the API by another", ended(143, 11, disrupted("EvictionByEvictionAPI", 10), deleted(10, 30*time.Second)), Eviction, Known, "", "short of"},
	{"preempted", ended(143, 11, disrupted("PreemptionByScheduler", 10), deleted(10, 30*time.Second)), Preemption, Known, "", "priority"},
	{"node shutdown", ended(143, 11, status("Terminated", "Pod was terminated in response to imminent node shutdown.")), Shutdown, Known, "", "shut down"},
	{"activeDeadlineSeconds", ended(137, 61, status("DeadlineExceeded", "")), Deadline, Known, "", "activeDeadlineSeconds"},
	{"killed for a failed hook", ended(137, 3, event("Killing", "main", "FailedPostStartHook", 1, 2)), KubeletStop, Known, "", "a hook"},
	{"SIGKILL by nobody known", ended(137, 10), Unknown, NotKnown, "", "systemd-oomd"},
	{"SIGKILL where OOM kills are not seen", ended(137, 10, blind("no BTF")), Unknown, NotKnown, "", "dmesg"},
	{"SIGKILL where Events are not known", ended(137, 10, func(c *Case) { c.NoEvents = "forbidden" }), Unknown, NotKnown, "", "kubectl describe"},
	{"SIGTERM by nobody known", ended(143, 10), Unknown, NotKnown, "", "who sent the signal"},
	{"SIGKILL does not become a heap error", ended(137, 10, says("java.lang.OutOfMemoryError: Java heap space")), Unknown, NotKnown, "", "systemd-oomd"},
	{"Java's heap is full, it exits with 3", ended(3, 10, says("Terminating due to java.lang.OutOfMemoryError: Java heap space")), Heap, Likely, "", "-Xmx"},
	{"node's heap is full, it aborts", ended(134, 10, says("FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory")), Heap, Likely, "", "-Xmx"},
	{"it aborts without a word", ended(134, 10), Crash, Known, "", "aborted"},
	{"segmentation fault", ended(139, 10), Crash, Known, "", "core dump"},
	{"bus error beside a failed probe", ended(135, 7, alive, event("Unhealthy", "main", livenessFailed, 3, 6)), Crash, Known, "", "core dump"},
	{"the application ends with 1", ended(1, 10), Application, Likely, "", "--previous"},
	{"the application ends with 1, its volume is full", ended(1, 10, volume("logs", 10, 100), volume("data", 99, 100)), Application, Likely, "", "Volume data is 99 % full"},
	{"the application ends with 1 and says that a file system is full", ended(1, 10, says("write /data/all: no space left on device")), Application, Likely, "", "file system is full"},
	{"the application ends with -1", ended(255, 10), Application, Likely, "", "--previous"},
	{"a code beyond all signals", ended(200, 10), Application, Likely, "", "--previous"},
	{"the runtime lost it", ended(255, 10, reason("Unknown")), RuntimeLost, Known, "", "restart of the node"},
	{"the kubelet lost it and says 137", ended(137, 10, reason("ContainerStatusUnknown")), RuntimeLost, Known, "", "restart of the node"},
	{"its command is not there", ended(128, 0, reason("StartError"), says("exec: no such file")), StartError, Known, "", "command"},
	{"a shell does not find its command", ended(127, 0), StartError, Likely, "", "command"},
	{"SIGINT by nobody known", ended(130, 10), Unknown, NotKnown, "", "who sent the signal"},
}

func TestJudge(t *testing.T) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			v, ok := Judge(tc.c)
			if !ok || v.Cause != tc.want || v.Certainty != tc.how || v.LimitOf != tc.limitOf {
				t.Errorf("%s, %s, limit of %q: %s; want %s, %s, limit of %q", v.Cause, v.Certainty, v.LimitOf, v.How, tc.want, tc.how, tc.limitOf)
			}
			if !strings.Contains(v.Next, tc.next) || !strings.HasSuffix(v.Next, ".") {
				t.Errorf("next: %q, want a sentence with %q", v.Next, tc.next)
			}
			if v.How == "" {
				t.Error("it does not say how the cause is known")
			}
		})
	}
}

func TestCodeZeroIsNoCase(t *testing.T) {
	if v, ok := Judge(ended(0, 10, kill(10, "container"))); ok {
		t.Errorf("%+v, want none", v)
	}
}

func TestEvidence(t *testing.T) {
	c := ended(137, 7, alive, starting, kill(3, "container"), deleted(9, 2*time.Second), volume("logs", 1<<20, 4<<20), volume("data", 8<<20, 8<<20),
		event("Killing", "main", livenessKill, 1, 5), event("BackOff", "main", "Back-off restarting failed container", 4, 6), says("line one\nline two"))
	c.Volumes[0].Inodes, c.Volumes[0].InodesUsed = 10, 9
	for i := range 9 {
		event("FailedMount", "", fmt.Sprintf("mount %d", i), 1, 1)(c)
	}
	v, _ := Judge(c)
	all := strings.Join(v.Evidence, "\n")
	for _, want := range []string{
		"code 137, reason Error, ran 7s, restarted 0 times before",
		"last words: line one line two",
		"OOM kill of process java (42) at 12:00:03, limit of: container, limit 64.0 MiB",
		"pod deleted: grace period of 2s over at 12:00:11",
		"liveness probe: first after 2s, every 1s, timeout 1s, 3 failures: it can stop the container 4s after its start",
		"startup probe: first after 0s, every 2s, timeout 1s, 5 failures: it can stop the container 8s after its start",
		"Event Killing of main, 1 times, last at 12:00:05: " + livenessKill,
		"Warning BackOff of main, 4 times, last at 12:00:06",
		"3 more Events",
		"fullest volume: data, 100 % full (8.0 MiB of 8.0 MiB)",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("evidence does not have %q:\n%s", want, all)
		}
	}
	c.Volumes, c.NoVolume, c.Events, c.NoEvents, c.Kills, c.Blind = nil, "403", nil, "503", nil, "no BTF"
	v, _ = Judge(c)
	all = strings.Join(v.Evidence, "\n")
	for _, want := range []string{"volumes: not known, 403", "Events: not known, 503", "OOM kills: may have been missed, no BTF"} {
		if !strings.Contains(all, want) {
			t.Errorf("evidence does not have %q:\n%s", want, all)
		}
	}
}

// FuzzJudge: whatever is said, no code 137 becomes an OOM kill unless a kill or the runtime says so, every verdict has its
// words, and the causes stay on the list.
func FuzzJudge(f *testing.F) {
	f.Add(int32(137), int32(0), "Error", "", int64(10), int64(9), "Killing", livenessKill, false)
	f.Add(int32(1), int32(11), "OOMKilled", "MemoryError", int64(-1), int64(0), "Unhealthy", livenessFailed, true)
	f.Fuzz(func(t *testing.T, code, signal int32, reason, message string, finished, last int64, kind, text string, probe bool) {
		c := ended(code, float64(finished%100000), event(kind, "main", text, 3, float64(last%100000)))
		c.Signal, c.Reason, c.Message = signal, reason, message
		if probe {
			alive(c)
		}
		v, ok := Judge(c)
		switch {
		case ok != (code != 0):
			t.Fatalf("code %d: ok is %v", code, ok)
		case !ok:
			return
		case v.How == "" || v.Next == "" || len(v.Evidence) == 0 || v.Certainty == "":
			t.Fatalf("no words in %+v", v)
		case (v.Cause == OOM || v.Cause == OOMChild) && reason != "OOMKilled":
			t.Fatalf("an OOM kill that nobody saw: %+v", v)
		case (v.Cause == Unknown) != (v.Certainty == NotKnown):
			t.Fatalf("cause %s is %s", v.Cause, v.Certainty)
		}
	})
}
