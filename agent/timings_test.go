package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"spillway/agent/evict"
	"spillway/agent/policy"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/cri"
	"spillway/cri/critest"
	"spillway/test/oomnode"
)

// What evictions took is there after a restart, and it goes into decisions.
func TestTimingsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	lives(t, dir, func(t *testing.T, a *Agent) {
		a.openHabits()
		a.openTimings()
		stop := running(t, a.habits.run)
		if got, n := a.timing(); got != (policy.Timing{}) || n.Calls != 0 {
			t.Errorf("before the first start: %+v of %+v", got, n)
		}
		if got := a.timingStatus(); *got != (status.Timing{CallSeconds: 1, CutSeconds: 3.5, BackBytes: 4 << 30}) {
			t.Errorf("before the first start %+v is shown", got)
		}
		for range 3 {
			a.timings.learned.Call(time.Now(), 300*time.Millisecond)
			a.timings.learned.Cut(time.Now(), 2*time.Second, false)
		}
		var err error
		if a.evicts, err = evict.New(evict.Options{Call: func(context.Context, evict.Request) policy.Answer { return policy.Answer{} }}); err != nil {
			t.Fatal(err)
		}
		l := &loop{a: a}
		l.measure(time.Now())
		for limit := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if data, _, _ := a.timings.store.Load(); len(data) > 0 {
				break
			}
			if time.Now().After(limit) {
				t.Fatal("not written")
			}
		}
		stop()
	})
	lives(t, dir, func(t *testing.T, a *Agent) {
		a.openHabits()
		a.openTimings()
		if got, n := a.timing(); got != (policy.Timing{Call: 800 * time.Millisecond, Cut: 2500 * time.Millisecond}) || n.Calls != 3 || n.Cuts != 3 || n.Backs != 0 {
			t.Errorf("%+v of %+v", got, n)
		}
		if got := a.timingStatus(); *got != (status.Timing{CallSeconds: 0.8, Calls: 3, CallMeasured: true, CutSeconds: 2.5, Cuts: 3, CutMeasured: true, BackBytes: 4 << 30}) {
			t.Errorf("%+v is shown", got)
		}
		if err := a.timings.store.Save([]byte("{")); err != nil {
			t.Fatal(err)
		}
	})
	lives(t, dir, func(t *testing.T, a *Agent) {
		a.openHabits()
		a.openTimings()
		if got, _ := a.timing(); got != (policy.Timing{}) {
			t.Errorf("%+v of a document that is damaged", got)
		}
		if src := a.source("habits"); src.State != status.Degraded {
			t.Errorf("source %+v, want degraded for a document that is damaged", src)
		}
	})
}

// A cut has the runtime stop the containers that run in the pod, and no others. The time of a cut depends on whether it may be asked.
func TestACutStopsTheContainers(t *testing.T) {
	rt := critest.Start(t)
	rt.Set(cri.Container{ID: "a", PodUID: "1", State: cri.StateRunning}, cri.Container{ID: "b", PodUID: "1", State: cri.StateExited}, cri.Container{ID: "c", PodUID: "2", State: cri.StateRunning})
	client, err := cri.Dial(cri.Options{Endpoint: rt.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	a := keeper(t, t.TempDir(), &bytes.Buffer{})
	a.runtimeView.Store(&cri.View{})
	a.openTimings()
	accepted := policy.Answer{Verb: policy.Accepted, Code: 201}
	if got := a.stopContainers(t.Context(), "1", accepted); got.Stopped || got.Verb != policy.Accepted || a.mayStop() {
		t.Errorf("without a runtime: %+v, may stop %v", got, a.mayStop())
	}
	a.runtime = client
	if a.mayStop() {
		t.Error("a runtime that was never heard may be asked")
	}
	fault := errors.New("the runtime is away")
	for _, v := range []cri.View{{Synced: true, Hung: true}, {Synced: true, Err: fault.Error()}} {
		a.runtimeView.Store(&v)
		if a.mayStop() {
			t.Errorf("a runtime may be asked that is %+v", v)
		}
	}
	a.runtimeView.Store(&cri.View{Synced: true, Containers: []cri.Container{{ID: "a", PodUID: "1", State: cri.StateRunning}, {ID: "b", PodUID: "1", State: cri.StateExited}, {ID: "c", PodUID: "2", State: cri.StateRunning}}})
	if got, _ := a.timing(); got != (policy.Timing{Stops: true}) || a.timingStatus().CutSeconds != 2 {
		t.Errorf("%+v, shown %+v", got, a.timingStatus())
	}
	a.cfg.ShortenGrace = false
	if a.mayStop() {
		t.Error("the runtime may be asked although no grace period is cut short")
	}
	a.cfg.ShortenGrace = true
	if got := a.stopContainers(t.Context(), "3", accepted); got.Stopped {
		t.Errorf("%+v for a pod without containers", got)
	}

	rt.Fail(fault)
	if got := a.stopContainers(t.Context(), "1", accepted); got.Verb != policy.Backoff || got.Stopped || a.mayStop() {
		t.Errorf("%+v of a runtime that refuses, may stop %v", got, a.mayStop())
	}
	rt.Fail(nil)
	if got := a.stopContainers(t.Context(), "1", accepted); got.Verb != policy.Accepted || !got.Stopped || !a.mayStop() {
		t.Errorf("%+v, may stop %v", got, a.mayStop())
	}
	stopped := map[string]bool{"a": true, "b": true, "c": true}
	running(t, func(ctx context.Context) error {
		return client.Watch(ctx, func(v cri.View) {
			if v.Synced {
				a.runtimeView.Store(&v)
			}
		})
	})
	for limit := time.Now().Add(10 * time.Second); len(a.runtimeView.Load().Containers) != 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("containers %+v, want a stopped", a.runtimeView.Load().Containers)
		}
	}
	for _, c := range a.runtimeView.Load().Containers {
		delete(stopped, c.ID)
	}
	if len(stopped) != 1 || !stopped["a"] {
		t.Errorf("stopped are %v", stopped)
	}
}

func TestHeldPoints(t *testing.T) {
	got := heldPoints([]sampler.GroupSample{{At: 1, WorkingSet: 10, ActiveFile: 4}, {At: 2, WorkingSet: cgroup.Absent}, {At: 3, WorkingSet: 2, ActiveFile: 3}})
	if len(got) != 2 || got[0].Held != 6 || got[0].At != 1 || got[1].Held != 0 || got[1].At != 3 {
		t.Errorf("%+v", got)
	}
}

// endLarge has a process take 450 MiB in the cgroup of a pod on its way out, and end.
func (n *latencyNode) endLarge(p *latencyPod) {
	n.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=hold:%d", oomnode.ChildEnv, 450<<20))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		n.t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // it lives until then
		_ = cmd.Wait()         // "signal: killed" is what is wanted
	}()
	if err := os.WriteFile(filepath.Join(n.dir(p), p.container, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		n.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "holding" {
		if _, err := in.Write([]byte{'x'}); err != nil {
			n.t.Fatal(err)
		}
	}
	if lines.Text() != "holding" {
		n.t.Fatalf("it ended: %v", lines.Err())
	}
	time.Sleep(500 * time.Millisecond) // so that it is read
}

// On a node of real cgroups one pod grows and is evicted, and two end that nobody evicts: call and releases are measured, and
// another agent knows them.
func TestTimingsOfRealPods(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	n := newLatencyNode(t, 4)
	dir := t.TempDir()
	a := latencyAgent(t, n, dir)
	a.timings.learned.Call(time.Now(), time.Millisecond) // the one between these counts
	a.timings.learned.Call(time.Now(), 3*time.Second)
	stop := running(t, a.Run)
	await := func(what string, ok func(*status.Status) bool) *status.Status {
		t.Helper()
		for limit := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			s := a.snapshot.Load()
			if s != nil && ok(s) {
				return s
			}
			if time.Now().After(limit) {
				t.Fatalf("%s: not within a minute; evictions %+v, timing %+v, pressure %+v", what, s.Evictions, s.Evictions.Timing, s.Pressure)
			}
		}
	}
	await("evictions to be possible", func(s *status.Status) bool {
		return s.Evictions.Forbidden == "" && s.Pressure.MarginBytes != nil && len(s.Pods) == 4
	})
	const callTime = 200 * time.Millisecond
	for i, p := range n.pods[:3] {
		end := func() {}
		if i == 0 {
			end = n.leak(p, latencyRate)
			defer end()
			select {
			case arrived := <-n.arrivals:
				if arrived.pod != p.name {
					t.Fatalf("%s was evicted, want %s", arrived.pod, p.name)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("no eviction within 30 s: %+v", a.snapshot.Load())
			}
			time.Sleep(callTime)
		}
		p.terminating = true
		n.tell("MODIFIED", p.object())
		n.endLarge(p) // at an eviction a pod holds less than can be measured here
		end()
		await("a release to be measured", func(s *status.Status) bool { return s.Evictions.Timing.Releases == i+1 })
		n.removeCgroup(p)
		n.tell("DELETED", p.object())
	}
	got := a.snapshot.Load().Evictions.Timing
	t.Logf("%+v", got)
	if took := got.CallSeconds - 0.5; !got.CallMeasured || got.Calls != 3 || took < callTime.Seconds() || took > 1 {
		t.Errorf("a call took %.3f s, %d were measured; want %v and a little, of three", took, got.Calls, callTime)
	}
	if !got.BackMeasured || got.BackBytes < 256<<20 || got.BackBytes > 32<<30 || got.CutMeasured {
		t.Errorf("%+v", got)
	}
	want := got.CallSeconds + got.CutSeconds // of a pod that holds nothing; 4.5 s by the usual values
	await("lead times to follow", func(s *status.Status) bool { return math.Abs(s.Pressure.LeadSeconds-want) < 0.05 })
	time.Sleep(saveTimings + time.Second) // until it is written for sure
	stop()

	next := latencyAgent(t, n, dir)
	defer running(t, next.Run)()
	for limit := time.Now().Add(20 * time.Second); next.snapshot.Load() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("no status of the next agent")
		}
	}
	if again := next.snapshot.Load().Evictions.Timing; *again != *got {
		t.Errorf("the next agent knows %+v, want %+v", again, got)
	}
}
