package agent

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/agent/evict"
	"spillway/agent/policy"
	"spillway/agent/status"
	"spillway/agent/triage"
)

// eventServer takes Events and their patches.
type eventServer struct {
	mu      sync.Mutex // guards what follows
	created []string
	patched int
}

func (s *eventServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/events"):
		s.created = append(s.created, string(body))
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/events/"):
		s.patched++
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","code":404}`)
		return
	}
	_, _ = io.WriteString(w, `{"kind":"Event","apiVersion":"v1"}`)
}

func (s *eventServer) count() (created, patched int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.created), s.patched
}

// eventLoop is a loop on node-a whose Events go to the server it returns.
func eventLoop(t *testing.T) (*loop, *eventServer) {
	t.Helper()
	events := &eventServer{}
	server := httptest.NewServer(events)
	t.Cleanup(server.Close)
	l := followLoop(t, `{"version":1}`, server.URL, new(bytes.Buffer))
	l.a.cluster.node.Store(&nodeView{})
	l.a.opts.NodeName = "node-a"
	t.Cleanup(running(t, l.a.cluster.client.Run))
	return l, events
}

// want waits until there are so many Events, and no more of them.
func (s *eventServer) want(t *testing.T, n int) []string {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for created, _ := s.count(); created < n && time.Now().Before(deadline); created, _ = s.count() {
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.created) != n {
		t.Fatalf("%d Events, want %d: %q", len(s.created), n, s.created)
	}
	return s.created
}

// A node on which every decision is held, with other figures each time, makes a handful of Events.
func TestHeldDecisionsMakeFewEvents(t *testing.T) {
	l, events := eventLoop(t)
	l.said = map[string]time.Time{}
	at := time.Now()
	for i := range 300 {
		eta := float64(i)
		l.keep(at.Add(time.Duration(i)*time.Second), &status.Decision{State: stateHeld, Reason: "cooldown", Signal: "memory.available", MarginBytes: int64(i) << 20, ETASeconds: &eta}, "")
		client := l.a.cluster.client
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if created, patched := events.count(); uint64(created+patched)+client.Dropped() == uint64(i+1) {
				break
			}
		}
	}
	created, patched := events.count()
	if created < 2 || created >= 10 || patched == 0 || patched > 30 {
		t.Errorf("300 held decisions made %d Events and %d updates", created, patched)
	}
}

// The pod is soon gone: its workload tells of the eviction too.
func TestEvictionIsToldOnThePodAndItsWorkload(t *testing.T) {
	l, events := eventLoop(t)
	pod := &policy.Pod{Namespace: "shop", Name: "cart-0", UID: "c0ffee", Owner: policy.Owner{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "cart", UID: "5e7"}}
	o := evict.Outcome{Victim: evict.Victim{Pod: pod, DecisionID: "d-1"}, State: evict.InFlight, AnswerAt: time.Now()}
	l.evictedEvents(&o, "it grew")
	got := events.want(t, 2)
	for i, want := range []string{"Evicted by Spillway: it grew", "Pod cart-0 was evicted from node node-a by Spillway: it grew"} {
		for _, part := range []string{want, "SpillwayEvicted", "Evicting", "c0ffee", "StatefulSet", "5e7"} { // the object and the related one
			if !strings.Contains(got[i], part) {
				t.Errorf("Event %d has no %q: %q", i, part, got[i])
			}
		}
	}
	o.DryRun, pod.Name = true, "cart-1"
	l.evictedEvents(&o, "it grew")
	if got = events.want(t, 3); !strings.Contains(got[2], "SpillwayWouldEvict") || strings.Contains(got[2], "StatefulSet") {
		t.Errorf("observe mode: %q", got[2])
	}
	bare := evict.Outcome{Victim: evict.Victim{Pod: &policy.Pod{Namespace: "shop", Name: "bare", UID: "b"}}, AnswerAt: time.Now()}
	l.evictedEvents(&bare, "it grew")
	events.want(t, 4)
}

func TestKillIsToldOnItsPod(t *testing.T) {
	l, events := eventLoop(t)
	l.a.kills = make(chan status.OOMKill, 8)
	l.a.report(status.OOMKill{At: time.Now(), Victims: 1, PID: 7, Process: "sshd", Cgroup: "/system.slice"})
	l.a.report(status.OOMKill{At: time.Now(), Victims: 1, PID: 8, Process: "java", Namespace: "shop", Pod: "cart-0", PodUID: "c0ffee", Container: "main", Domain: "node", LimitOf: "none"})
	got := events.want(t, 1)
	for _, part := range []string{"SpillwayOOMKilled", "c0ffee", "Warning", "The kernel killed java (pid 8) in container main: the node was out of memory. Only this process was killed. To do: find what filled the node"} {
		if !strings.Contains(got[0], part) {
			t.Errorf("no %q in %q", part, got[0])
		}
	}
}

// A container that is killed and restarted again and again makes a handful of Events.
func TestCrashLoopMakesFewEvents(t *testing.T) {
	l, events := eventLoop(t)
	l.a.kills = make(chan status.OOMKill, 64)
	at := time.Now()
	for i := range 20 {
		l.a.report(status.OOMKill{At: at.Add(time.Duration(i) * time.Minute), Victims: 1, PID: uint32(100 + i), Process: "java", Namespace: "shop", Pod: "cart-0", PodUID: "c0ffee", Container: "main"})
	}
	events.want(t, 4)
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

// A container that SIGKILL ended has its cause on the pod, once: not where the kernel's kill or an eviction is told already.
func TestExit137IsTold(t *testing.T) {
	l, events := eventLoop(t)
	n := 0
	tell := func(code int32, cause triage.Cause, kills int) {
		n++
		l.a.tellExit(&status.Exit{Namespace: "shop", Pod: "cart-0", PodUID: fmt.Sprint("uid-", n), Container: "main", Code: code, At: time.Now(), Cause: string(cause), Certainty: string(triage.Likely), How: "the probe failed 3 times.", Next: "See why it hangs."}, kills)
	}
	tell(1, triage.Application, 0)
	tell(137, triage.Terminated, 0)
	tell(137, triage.Eviction, 0)
	tell(137, triage.OOM, 1)
	tell(137, triage.OOM, 0)
	tell(137, triage.Liveness, 0)
	got := events.want(t, 2)
	if !strings.Contains(got[0], "uid-5") || !strings.Contains(got[0], "(SIGKILL): "+string(triage.OOM)) {
		t.Errorf("a kill that no tracer saw: %q", got[0])
	}
	for _, part := range []string{"SpillwayExit137", "uid-6", "Container main ended with exit code 137 (SIGKILL): " + string(triage.Liveness) + " (likely): the probe failed 3 times. To do: See why it hangs."} {
		if !strings.Contains(got[1], part) {
			t.Errorf("no %q in %q", part, got[1])
		}
	}
}
