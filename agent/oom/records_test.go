package oom

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/oom/domain"
	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/ebpf/oomkill/kmsg"
)

// lateNames is a Mapper that is told names by the test.
type lateNames struct {
	Mapper
	owners chan podmap.Owner
}

func (m lateNames) Named(ctx context.Context, _ uint64) (podmap.Owner, bool) {
	select {
	case o := <-m.owners:
		return o, true
	case <-ctx.Done():
		return podmap.Owner{}, false
	}
}

// TestRecordsWaitForNames: a record of a container that is not named yet waits, for a while, and not too many do.
func TestRecordsWaitForNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := lateNames{owners: make(chan podmap.Owner)}
		reports := make(chan status.OOMKill, 2*maxUnnamed)
		r := recorder{mapper: m, clock: func() time.Duration { return 3 * time.Second }, report: func(k status.OOMKill) { reports <- k },
			namesLater: true, unnamed: make(chan struct{}, maxUnnamed)}
		finish := func(v victim, want int) {
			t.Helper()
			r.finish(t.Context(), v)
			synctest.Wait()
			if len(reports) != want {
				t.Fatalf("%d reports, want %d", len(reports), want)
			}
		}
		unnamed := victim{mark: 2 * time.Second, kill: status.OOMKill{CgroupID: 7, ContainerID: "c"}}
		finish(unnamed, 0)
		m.owners <- podmap.Owner{Namespace: "shop", Pod: "cart", Container: "heap"}
		if k := <-reports; k.Pod != "cart" || k.Container != "heap" || k.ContainerID != "c" || *k.LatencySeconds != 1 {
			t.Errorf("%s", text(&k))
		}
		for range maxUnnamed {
			finish(unnamed, 0)
		}
		finish(unnamed, 1)
		time.Sleep(nameWait)
		synctest.Wait()
		if len(reports) != maxUnnamed+1 {
			t.Errorf("%d reports after %v, want %d", len(reports), nameWait, maxUnnamed+1)
		}
		for len(reports) > 0 {
			if k := <-reports; k.Pod != "" {
				t.Errorf("%s", text(&k))
			}
		}
		named, nowhere := unnamed, unnamed
		named.named, nowhere.kill.CgroupID = true, 0
		finish(named, 1)
		finish(nowhere, 2)
		r.namesLater = false
		finish(unnamed, 3)
	})
}

// TestJoin: a group kill has the first victim's record, with what is surest of all of them.
func TestJoin(t *testing.T) {
	group := []victim{
		{kill: status.OOMKill{PID: 1, Process: "a", Domain: string(domain.Unknown), DomainWhy: "several limits were hit"}},
		{kill: status.OOMKill{PID: 2, Process: "b", Domain: string(domain.Pod), DomainCgroup: "/p", DomainKnownBy: string(domain.ByLog)}},
	}
	for len(group) < maxOthers+10 {
		group = append(group, victim{kill: status.OOMKill{PID: 3}})
	}
	k := join(group).kill
	if k.PID != 1 || k.Victims != len(group) || len(k.Others) != maxOthers || k.Others[0].Process != "b" {
		t.Errorf("%s", text(&k))
	}
	if k.Domain != string(domain.Pod) || k.DomainCgroup != "/p" || k.DomainWhy != "" {
		t.Errorf("domain %s of %q, %q", k.Domain, k.DomainCgroup, k.DomainWhy)
	}
}

// TestGroupLines: the line that names a cgroup is about the process of the line before it and those that follow without a pause.
func TestGroupLines(t *testing.T) {
	f := logFacts{causes: map[uint32]*kmsg.Cause{}, groups: map[uint32]string{}, at: map[uint32]time.Duration{}}
	const now = time.Minute
	f.noteKill(now, 1, time.Second)
	f.noteGroup(now, "/a", time.Second)
	f.noteKill(now, 2, time.Second+groupPause-1)
	f.noteKill(now, 3, time.Second+2*groupPause-2)
	f.noteKill(now, 4, time.Second+3*groupPause)
	f.noteGroup(now, "/b", 3*time.Second)
	f.noteCause(now, &kmsg.Cause{PID: 5})
	f.noteKill(now, 5, 3*time.Second)
	for pid, want := range map[uint32]string{1: "/a", 2: "/a", 3: "/a", 4: "/b", 5: ""} {
		if f.groups[pid] != want {
			t.Errorf("process %d is of group %q, want %q", pid, f.groups[pid], want)
		}
	}
	if f.causes[5] == nil {
		t.Error("the cause is not kept")
	}
	f.forget(now + remember)
	if len(f.groups) != 4 || len(f.causes) != 1 {
		t.Error("forgotten too early")
	}
	f.forget(now + remember + 1)
	if len(f.groups)+len(f.causes)+len(f.at) != 0 {
		t.Errorf("kept: %v, %v, %v", f.groups, f.causes, f.at)
	}
}
