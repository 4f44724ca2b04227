package report

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"spillway/agent/evict"
	"spillway/agent/incident"
	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/policy"
	"spillway/agent/status"
	"spillway/agent/triage"
)

// Each listener hears its part, one that is not there is passed over, and an Event about nothing else is about the node.
func TestTell(t *testing.T) {
	var log bytes.Buffer
	var got []string
	node := kube.NodeRef("node-a", "n-uid")
	l := Listeners{
		Log: slog.New(slog.NewJSONHandler(&log, nil)), Metrics: metrics.New("1.0", metrics.DefaultPods, func() *status.Status { return nil }),
		Recording: func(_ time.Time, kind string, data any) {
			text, err := json.Marshal(data)
			if err != nil {
				t.Error(err)
			}
			got = append(got, kind+" "+string(text))
		},
		Listed:   func(e *status.Event) { got = append(got, "listed "+e.Text) },
		Incident: func(_ time.Time, tr incident.Trigger) { got = append(got, "incident "+tr.Text) },
		Events:   func(about kube.Ref, e kube.Event) { got = append(got, about.Kind+" "+about.Name+" "+e.Reason) },
		Node:     func() kube.Ref { return node },
	}
	pod := &policy.Pod{Namespace: "shop", Name: "cart-0", UID: "c0ffee"}
	o := &evict.Outcome{Victim: evict.Victim{Pod: pod, DecisionID: "d-1", Release: 64 << 20}, State: evict.InFlight, AnswerAt: time.Now(), AskedAt: time.Now()}
	l.Tell(time.Now(), Eviction{Outcome: o, Decision: &status.Decision{ID: "d-1", Why: "it grew", Reason: "best ranked"}, Node: "node-a"})
	l.Tell(time.Now(), Unauthorized{At: time.Now(), Message: "no"})
	text := strings.Join(got, "\n")
	for _, want := range []string{`eviction {"answer":`, `"decision":"d-1"`, "listed Spillway evicted the pod to get 64.0 MiB back: it grew", "incident Spillway evicted", "Pod cart-0 SpillwayEvicted", "Node node-a SpillwayUnauthorized"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if line := log.String(); !strings.Contains(line, `"msg":"eviction in-flight","message_id":"1abd2b17ac17415ab3b05234adf6ae01","decision":"d-1"`) {
		t.Errorf("log %s", line)
	}
	(&Listeners{}).Tell(time.Now(), Eviction{Outcome: o}) // must not panic
}

// The pod is soon gone: its workload tells of the eviction too.
func TestEvictionIsToldOnThePodAndItsWorkload(t *testing.T) {
	pod := &policy.Pod{Namespace: "shop", Name: "cart-0", UID: "c0ffee"}
	o := evict.Outcome{Victim: evict.Victim{Pod: pod, DecisionID: "d-1"}, State: evict.InFlight, AnswerAt: time.Now()}
	workload := kube.Ref{APIVersion: "apps/v1", Kind: "StatefulSet", Namespace: "shop", Name: "cart", UID: "5e7"}
	uses, grows := uint64(300<<20), 50.0*(1<<20)
	r := Eviction{Outcome: &o, Workload: workload, Node: "node-a", Decision: &status.Decision{Signal: "memory.available", Why: "it grew", Reason: "best ranked",
		Ranking: []status.Pod{{UID: "c0ffee", WorkingSetBytes: &uses, GrowthBytes: &grows}}}}
	got := r.Told().Events
	if len(got) != 2 || got[0].About.UID != "c0ffee" || got[0].Related != workload || got[1].About != workload || got[1].Related.UID != "c0ffee" {
		t.Fatalf("Events %+v", got)
	}
	for i, want := range []string{"Evicted by Spillway: it uses 300 MiB and grows by 50.0 MiB/s; signal memory.available", "Pod cart-0 was evicted from node node-a by Spillway: it uses 300 MiB"} {
		if e := got[i]; !strings.HasPrefix(e.Message, want) || !strings.HasSuffix(e.Message, "it grew; best ranked") || e.Reason != "SpillwayEvicted" || !e.Warning {
			t.Errorf("Event %d is %+v", i, e)
		}
	}
	o.DryRun, o.State = true, evict.WouldEvict
	if got = r.Told().Events; len(got) != 1 || got[0].Reason != "SpillwayWouldEvict" || got[0].Related != (kube.Ref{}) {
		t.Errorf("observe mode: %+v", got)
	}
	o.DryRun, o.State, r.Workload = false, evict.InFlight, kube.Ref{}
	if got = r.Told().Events; len(got) != 1 || got[0].About.UID != "c0ffee" {
		t.Errorf("without a workload: %+v", got)
	}
	o.State = evict.Released
	if told := r.Told(); len(told.Events) != 0 || told.Trigger != nil || told.Event != nil {
		t.Errorf("a later state: %+v", told)
	}
}

// What holds back for a limit of our own makes no Event, and neither does a decision by which something is done.
func TestDecisionsOnTheNode(t *testing.T) {
	for state, want := range map[string]string{"held": "SpillwayHeld", policy.StateStandBy: "SpillwayStandBy", policy.StateVictim: "", policy.CacheReclaim: "", NearMiss: ""} {
		got := ""
		if e := (Decision{Decision: &status.Decision{State: state, Reason: "cooldown"}}).Told().Events; len(e) == 1 {
			got = e[0].Reason
		}
		if got != want {
			t.Errorf("%s: Event %q, want %q", state, got, want)
		}
	}
	if e := (Decision{Decision: &status.Decision{State: "held"}, Quiet: true}).Told().Events; len(e) != 0 {
		t.Errorf("a quiet one: %+v", e)
	}
}

// A container that SIGKILL ended has its cause on the pod, once: not where the kernel's kill or an eviction is told already.
func TestExit137IsTold(t *testing.T) {
	for _, tc := range []struct {
		code  int32
		cause triage.Cause
		kills bool
		want  string // of the Event; empty: none
	}{
		{1, triage.Application, false, ""},
		{137, triage.Terminated, false, ""},
		{137, triage.Eviction, false, ""},
		{137, triage.OOM, true, ""},
		{137, triage.OOM, false, "Container main ended with exit code 137 (SIGKILL): " + string(triage.OOM)}, // a kill that no tracer saw
		{137, triage.Liveness, false, "Container main ended with exit code 137 (SIGKILL): " + string(triage.Liveness) + " (likely): the probe failed 3 times. To do: See why it hangs."},
	} {
		got := Exit{Kills: tc.kills, Exit: &status.Exit{Namespace: "shop", Pod: "cart-0", PodUID: "u", Container: "main", Code: tc.code, Cause: string(tc.cause), Certainty: string(triage.Likely),
			How: "the probe failed 3 times.", Next: "See why it hangs."}}.Told().Events
		switch {
		case tc.want == "" && len(got) != 0, tc.want != "" && (len(got) != 1 || got[0].Reason != "SpillwayExit137" || !strings.HasPrefix(got[0].Message, tc.want)):
			t.Errorf("code %d, %s: %+v, want %q", tc.code, tc.cause, got, tc.want)
		}
	}
}

func TestKillText(t *testing.T) {
	mib := func(n uint64) *uint64 { n <<= 20; return &n }
	signed := func(n int64) *int64 { n <<= 20; return &n }
	growth := 12.5 * (1 << 20)
	pod := status.Pod{UID: "u", WorkingSetBytes: mib(63), LimitBytes: mib(64), GrowthBytes: &growth}
	one := status.OOMKill{Victims: 1, PID: 42, Process: "java", Container: "main", PodUID: "u", AnonBytes: mib(60), Domain: "container", DomainLimitBytes: mib(64), LimitOf: "container", LimitBytes: mib(64)}
	with := func(change func(k *status.OOMKill)) status.OOMKill {
		k := one
		change(&k)
		return k
	}
	for name, tc := range map[string]struct {
		kill   status.OOMKill
		status *status.Status
		want   string
	}{
		"at the container's limit": {one, nil,
			"The kernel killed java (pid 42) in container main with 60.0 MiB of anonymous memory: the container was at its limit of 64.0 MiB. Only this process was killed. To do: raise the container's memory limit, or find what grew in it"},
		"on a roomy node, sampled before": {one, &status.Status{Pressure: status.Pressure{MarginBytes: signed(3 << 10)}, Pods: []status.Pod{{UID: "other", WorkingSetBytes: mib(1)}, pod}},
			"The kernel killed java (pid 42) in container main with 60.0 MiB of anonymous memory: the container was at its limit of 64.0 MiB. Only this process was killed. " +
				"At the last sample the pod used 63.0 MiB (98 % of its limit of 64.0 MiB) and grew by 12.5 MiB/s. " +
				"To do: raise the container's memory limit, the node has 3.00 GiB left (in place: kubectl patch pod --subresource resize), or find what grew in it"},
		"on a node with less left than the limit": {one, &status.Status{Pressure: status.Pressure{MarginBytes: signed(63)}},
			"The kernel killed java (pid 42) in container main with 60.0 MiB of anonymous memory: the container was at its limit of 64.0 MiB. Only this process was killed. To do: raise the container's memory limit, or find what grew in it"},
		"a group": {with(func(k *status.OOMKill) { k.Group, k.Victims = "/pod/c", 5 }), nil,
			"The kernel killed java (pid 42) and 4 more in container main with 60.0 MiB of anonymous memory: the container was at its limit of 64.0 MiB. They were killed together, as a group (memory.oom.group). " +
				"To do: raise the container's memory limit, or find what grew in it; where the application survives the loss of one process, set singleProcessOOMKill: true in the kubelet's configuration"},
		"the pod's limit is the container's": {with(func(k *status.OOMKill) { k.Domain, k.AnonBytes = "pod", nil }), nil,
			"The kernel killed java (pid 42) in container main: the pod was at its limit of 64.0 MiB. Only this process was killed. To do: raise the container's memory limit, or find what grew in it"},
		"the pod's limit": {with(func(k *status.OOMKill) { k.Domain, k.DomainLimitBytes, k.AnonBytes = "pod", mib(128), nil }), nil,
			"The kernel killed java (pid 42) in container main: the pod was at its limit of 128.0 MiB. Only this process was killed. " +
				"To do: add up what the containers of the pod use: they reached its limit together, and the killed process need not be the one that grew"},
		"another cgroup's limit": {with(func(k *status.OOMKill) { k.Domain, k.DomainCgroup, k.AnonBytes = "cgroup", "/kube", nil }), nil,
			"The kernel killed java (pid 42) in container main: /kube was at its limit of 64.0 MiB. Only this process was killed. To do: see which limit cgroup /kube has, and who set it"},
		"NUMA": {with(func(k *status.OOMKill) { k.Domain, k.DomainLimitBytes, k.AnonBytes = "cpuset", nil, nil }), nil,
			"The kernel killed java (pid 42) in container main: the cpuset was out of memory. Only this process was killed. To do: see to which NUMA nodes the process is bound: their memory ran out, not the node's"},
		"only counted": {status.OOMKill{Victims: 2, Domain: "unknown", Container: "main"}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := killText(&tc.kill, tc.status)
			if tc.want != "" && got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if tc.want == "" && (!strings.Contains(got, "2 ") || !strings.HasSuffix(got, "To do: find out whose limit was reached (dmesg on the node): the container's, the pod's, or the node's memory as a whole")) {
				t.Errorf("got %s", got)
			}
			if strings.Contains(got, "Only this process") && tc.kill.Victims > 1 {
				t.Errorf("several and one: %s", got)
			}
		})
	}
}
