package habit

import (
	"fmt"
	"testing"
	"time"

	"spillway/agent/policy"
)

const mib = 1 << 20

var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func replica(n int, template string) *policy.Pod {
	return &policy.Pod{
		Namespace: "shop", Name: fmt.Sprintf("web-%s-%d", template, n), UID: fmt.Sprintf("uid-%s-%d", template, n), Labels: map[string]string{"pod-template-hash": template},
		Owner: policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-" + template, UID: "rs-" + template}, Grace: 30 * time.Second, StartedAt: begin.Add(-time.Hour),
	}
}

// exit lets a pod run and end: it takes so long from the deletion until nothing of it is left.
func exit(h *Habits, p *policy.Pod, at time.Time, took time.Duration, cut bool) {
	h.Seen(at.Add(-time.Second), p, 100*mib)
	ending := *p
	ending.Terminating = true
	h.Ending(at, &ending, false, false)
	h.Ending(at.Add(took/2), &ending, false, cut)
	h.Ending(at.Add(took), &ending, true, false)
	h.Ending(at.Add(took+time.Second), &ending, true, false)
}

func TestExit(t *testing.T) {
	const s = time.Second
	for _, tc := range []struct {
		name string
		took []time.Duration
		want time.Duration // 0: not known
	}{
		{"never seen", nil, 0},
		{"once may be luck", []time.Duration{2 * s}, 0},
		{"twice", []time.Duration{2 * s, 4 * s}, 5 * s},
		{"at least a second", []time.Duration{100 * time.Millisecond, 200 * time.Millisecond}, s},
		{"the longest of the last five", []time.Duration{20 * s, 4 * s, 4 * s, 8 * s, 4 * s, 4 * s}, 10 * s},
		{"ten: the 90th percentile", []time.Duration{20 * s, 4 * s, 4 * s, 4 * s, 4 * s, 4 * s, 4 * s, 4 * s, 4 * s, 4 * s}, 5 * s},
		{"at the end of the grace period: it was killed", []time.Duration{30 * s, 29500 * time.Millisecond, 31 * s}, 0},
		{"one that was killed says nothing of the others", []time.Duration{4 * s, 30 * s, 4 * s}, 5 * s},
	} {
		var h Habits
		for i, d := range tc.took {
			exit(&h, replica(i, "a"), begin.Add(time.Duration(i)*time.Hour), d, false)
		}
		// A rollout makes another ReplicaSet of the same Deployment.
		for _, template := range []string{"a", "b"} {
			if got, ok := h.Exit(replica(99, template)); got != tc.want || ok != (tc.want > 0) {
				t.Errorf("%s, template %s: %v, %v; want %v", tc.name, template, got, ok, tc.want)
			}
		}
		other := replica(99, "a")
		other.Owner.Name, other.Labels = "worker-a", nil
		if _, ok := h.Exit(other); ok {
			t.Errorf("%s: known for another workload", tc.name)
		}
	}
}

func TestExitsThatTeachNothing(t *testing.T) {
	for name, play := range map[string]func(h *Habits, p *policy.Pod, at time.Time){
		"its grace period was cut short": func(h *Habits, p *policy.Pod, at time.Time) { exit(h, p, at, 4*time.Second, true) },
		"it had ended before": func(h *Habits, p *policy.Pod, at time.Time) {
			h.Seen(at, p, 0)
			h.Ending(at.Add(time.Second), p, true, false)
		},
		"no container runs": func(h *Habits, p *policy.Pod, at time.Time) {
			p.Containers = []policy.Container{{Name: "c", Restarts: 40}}
			exit(h, p, at, 4*time.Second, false)
		},
		"it was never seen to run": func(h *Habits, p *policy.Pod, at time.Time) {
			h.init()
			h.Ending(at, p, false, false)
			h.Ending(at.Add(time.Second), p, true, false)
		},
		"the clock went back": func(h *Habits, p *policy.Pod, at time.Time) {
			h.Seen(at, p, 100*mib)
			h.Ending(at, p, false, false)
			h.Ending(at.Add(-time.Hour), p, true, false)
		},
		"it took days": func(h *Habits, p *policy.Pod, at time.Time) {
			p.Grace = 1 << 62
			exit(h, p, at, 72*time.Hour, false)
		},
		"no controller": func(h *Habits, p *policy.Pod, at time.Time) {
			p.Owner = policy.Owner{}
			exit(h, p, at, 4*time.Second, false)
		},
	} {
		var h Habits
		for i := range 3 {
			play(&h, replica(i, "a"), begin.Add(time.Duration(i)*time.Minute))
		}
		if got, ok := h.Exit(replica(9, "a")); ok {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// live plays seconds of a pod's memory, MiB, from at on.
func live(h *Habits, p *policy.Pod, at time.Time, seconds int, held func(s int) int) time.Time {
	for s := range seconds {
		h.Seen(at.Add(time.Duration(s)*time.Second), p, uint64(held(s))*mib)
	}
	return at.Add(time.Duration(seconds) * time.Second)
}

func TestBound(t *testing.T) {
	saw := func(s int) int { return 500 + 10*(s%30) } // up to 790 MiB
	for _, tc := range []struct {
		name string
		play func(h *Habits, p *policy.Pod)
		want int // MiB; 0: none
	}{
		{"nothing happened", func(h *Habits, p *policy.Pod) { live(h, p, begin, 60, func(int) int { return 500 }) }, 0},
		{"a heap that is collected", func(h *Habits, p *policy.Pod) { live(h, p, begin, 100, saw) }, 790 + 39},
		{"one that is collected all the time", func(h *Habits, p *policy.Pod) { live(h, p, begin, 100, func(s int) int { return 500 + 30*(s%10) }) }, 770 + 38},
		{"a burst, and less than before it", func(h *Habits, p *policy.Pod) {
			live(h, p, begin, 60, func(s int) int {
				switch {
				case s < 10:
					return 101
				case s < 20:
					return 1200
				}
				return 100
			})
		}, 1200 + 110},
		{"growth alone bounds nothing", func(h *Habits, p *policy.Pod) { live(h, p, begin, 100, func(s int) int { return 500 + 10*s }) }, 0},
		{"a fall by less than a third of the rise", func(h *Habits, p *policy.Pod) {
			live(h, p, begin, 100, func(s int) int { return 500 + 10*min(s, 50) - min(max(s-50, 0), 15)*10 })
		}, 0},
		{"noise", func(h *Habits, p *policy.Pod) { live(h, p, begin, 100, func(s int) int { return 500 + 30*(s%2) }) }, 0},
		{"it stood there for five minutes", func(h *Habits, p *policy.Pod) {
			live(h, p, begin, 320, func(s int) int { return min(500+50*s, 1000) })
		}, 1050},
		{"the fall was the end of a container", func(h *Habits, p *policy.Pod) {
			at := live(h, p, begin, 30, saw)
			at = live(h, p, at, 3, func(int) int { return 0 }) // the API server tells of it later
			p.Containers = []policy.Container{{Name: "c", Running: true, StartedAt: at, Restarts: 1}}
			live(h, p, at, 20, func(s int) int { return 10 * s })
		}, 0},
		{"the fall was the end of the pod", func(h *Habits, p *policy.Pod) {
			at := live(h, p, begin, 30, saw)
			at = live(h, p, at, 3, func(int) int { return 0 })
			p.Terminating = true
			live(h, p, at, 20, func(int) int { return 0 })
		}, 0},
	} {
		var h Habits
		p := replica(0, "a")
		tc.play(&h, p)
		if got := h.Bound(p) / mib; got != uint64(tc.want) {
			t.Errorf("%s: %d MiB, want %d", tc.name, got, tc.want)
		}
		if got := h.Bound(replica(5, "a")) / mib; got != uint64(tc.want) {
			t.Errorf("%s: %d MiB for another pod of the template, want %d", tc.name, got, tc.want)
		}
		if got := h.Bound(replica(5, "b")); got != 0 {
			t.Errorf("%s: %d bytes for another template", tc.name, got)
		}
	}
}

// A level is one that a pod is used to only where it stands: a slow leak is none, also under a heap that is collected.
func TestStanding(t *testing.T) {
	for _, tc := range []struct {
		name string
		held func(s int) int
		want bool
	}{
		{"a slow leak", func(s int) int { return 6144 + s*9/10 }, false},
		{"a slower one", func(s int) int { return 6144 + s*3/10 }, false},
		{"a slow leak under a heap that is collected", func(s int) int { return 6144 + s*6/10 + s%10 }, false},
		{"a leak that jumps", func(s int) int { return 6144 + s/70*25 }, false},
		{"it stands", func(int) int { return 6144 }, true},
		{"a heap that is collected", func(s int) int { return 6144 + s%20*10 }, true},
		{"it falls slowly", func(s int) int { return 6144 - s*3/10 }, true},
		{"within 1 %", func(s int) int { return 6144 + s/10 }, true},
		{"it stands after a leak", func(s int) int { return 6144 + min(s, 600)*9/10 }, true},
	} {
		var h Habits
		p := replica(0, "a")
		live(&h, p, begin, 1600, tc.held)
		if got := h.Bound(p) > 0; got != tc.want {
			t.Errorf("%s: a bound of %d MiB", tc.name, h.Bound(p)/mib)
		}
	}
}

// A peak that ended in an eviction or a kill bounds nothing.
func TestFailed(t *testing.T) {
	saw := func(s int) int { return 500 + 10*(s%30) } // up to 790 MiB, a bound of 829
	stood := func(h *Habits, p *policy.Pod, at time.Time) time.Time {
		return live(h, p, at, 320, func(int) int { return 6144 })
	}
	for _, tc := range []struct {
		name      string
		play      func(h *Habits, p *policy.Pod)
		own, next int // MiB
	}{
		{"a level at which it was evicted", func(h *Habits, p *policy.Pod) {
			h.Failed(stood(h, p, begin), p.UID)
		}, 0, 0},
		{"a level above which it was killed", func(h *Habits, p *policy.Pod) {
			at := live(h, p, stood(h, p, begin), 30, func(s int) int { return 6144 + 100*s })
			h.Failed(at, p.UID)
			h.Failed(at.Add(time.Second), p.UID)
		}, 0, 0},
		{"it had not reached the peak of others", func(h *Habits, p *policy.Pod) {
			at := stood(h, replica(1, "a"), begin)
			h.Failed(live(h, p, at, 30, saw), p.UID)
		}, 6451, 6451},
		{"a pod that is not known", func(h *Habits, p *policy.Pod) {
			h.Failed(stood(h, p, begin), "another")
		}, 6451, 6451},
		{"another template", func(h *Habits, p *policy.Pod) {
			at := stood(h, p, begin)
			q := replica(1, "b")
			live(h, q, at, 10, func(int) int { return 7000 })
			h.Failed(at.Add(10*time.Second), q.UID)
		}, 6451, 6451},
		{"a worker is killed before its fall is read", func(h *Habits, p *policy.Pod) {
			at := live(h, p, begin, 60, func(s int) int { return 500 + 90*s })
			h.Failed(at, p.UID)
			live(h, p, at, 60, func(s int) int { return max(500, 5000-1500*s) })
		}, 0, 0},
		{"a worker is killed, and its fall is read before", func(h *Habits, p *policy.Pod) {
			at := live(h, p, begin, 60, func(s int) int { return 500 + 90*s })
			at = live(h, p, at, 5, func(int) int { return 500 })
			h.Failed(at, p.UID)
			live(h, p, at, 60, func(int) int { return 500 })
		}, 0, 0},
		{"what it comes back from after is learned", func(h *Habits, p *policy.Pod) {
			at := live(h, p, begin, 60, func(s int) int { return 500 + 90*s })
			h.Failed(at, p.UID)
			live(h, p, at, 120, saw)
		}, 829, 829},
		{"the clock went back", func(h *Habits, p *policy.Pod) {
			h.Failed(stood(h, p, begin), p.UID)
			live(h, p, begin.Add(-24*time.Hour), 100, saw)
		}, 829, 829},
	} {
		var h Habits
		h.init()
		p := replica(0, "a")
		tc.play(&h, p)
		if own, next := h.Bound(p)/mib, h.Bound(replica(9, "a"))/mib; own != uint64(tc.own) || next != uint64(tc.next) {
			t.Errorf("%s: %d MiB, of another pod %d; want %d and %d", tc.name, own, next, tc.own, tc.next)
		}
	}
	var h Habits
	p := replica(0, "a")
	at := stood(&h, p, begin)
	if _, err := h.Save(); err != nil {
		t.Fatal(err)
	}
	if h.Failed(at, p.UID); !h.Changed() {
		t.Error("what was forgotten is not saved")
	}
}

func TestSaveAndLoad(t *testing.T) {
	var h, again Habits
	p := replica(0, "a")
	at := live(&h, p, begin, 100, func(s int) int { return 500 + 10*(s%30) })
	exit(&h, replica(1, "a"), at, 4*time.Second, false)
	exit(&h, replica(2, "a"), at, 4*time.Second, false)
	if !h.Changed() {
		t.Error("nothing to save")
	}
	data, err := h.Save()
	if err != nil || h.Changed() {
		t.Fatal(err, h.Changed())
	}
	if err := again.Load(at, data); err != nil {
		t.Fatal(err)
	}
	if got, ok := again.Exit(p); !ok || got != 5*time.Second || again.Bound(replica(7, "a")) != h.Bound(replica(7, "a")) || again.Bound(replica(7, "a")) == 0 {
		t.Errorf("exit %v, bound %d after loading", got, again.Bound(replica(7, "a")))
	}
	var old Habits
	if err := old.Load(at.Add(forget+time.Hour), data); err != nil || len(old.workloads) != 0 {
		t.Errorf("%v, %d workloads after more than two weeks", err, len(old.workloads))
	}
	for _, bad := range []string{"{", `{"version":9}`, `[]`} {
		if err := new(Habits).Load(at, []byte(bad)); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	if err := new(Habits).Load(at, nil); err != nil {
		t.Error(err)
	}
}

func TestHabitsAreBounded(t *testing.T) {
	var h Habits
	for i := range maxPods + 100 {
		p := replica(i, fmt.Sprint(i))
		p.Owner.Name, p.Labels = fmt.Sprintf("w-%d", i), nil
		at := begin.Add(time.Duration(i) * time.Second)
		exit(&h, p, at, 2*time.Second, false)
	}
	if len(h.workloads) > maxWorkloads || len(h.pods) > maxPods {
		t.Errorf("%d workloads, %d pods", len(h.workloads), len(h.pods))
	}
	h.Forget(begin.Add(24 * time.Hour))
	if len(h.pods) != 0 {
		t.Errorf("%d pods a day later", len(h.pods))
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"version":1,"workloads":[{"namespace":"a","kind":"ReplicaSet","name":"b","seenAt":"2999-01-01T00:00:00Z","exitsNanoseconds":[-1,0,9223372036854775807],"peakBytes":18446744073709551615}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var h Habits
		if h.Load(begin, data) != nil {
			return
		}
		for _, l := range h.workloads {
			p := &policy.Pod{Namespace: l.Namespace, Owner: policy.Owner{Kind: l.Kind, Name: l.Name}}
			if d, ok := h.Exit(p); ok && (d < leastExit || d > 2*mostExit) {
				t.Fatalf("exit %v", d)
			}
			h.Bound(p)
		}
		if _, err := h.Save(); err != nil {
			t.Fatal(err)
		}
	})
}

// What a Job of a CronJob held to its end is what the next one is expected to take.
func TestJobsOfACronJob(t *testing.T) {
	job := func(name string, request uint64) *policy.Pod {
		return &policy.Pod{Namespace: "shop", Name: name + "-x", UID: "uid-" + name, Request: request, StartedAt: begin, Grace: 30 * time.Second,
			Owner: policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: name, UID: "job-" + name}}
	}
	for name, tc := range map[string]struct {
		failed bool
		next   *policy.Pod
		want   uint64 // MiB
	}{
		"the next":                      {false, job("report-29411001", 0), 1050},
		"one after a kill":              {true, job("report-29411001", 0), 0},
		"another request":               {false, job("report-29411001", mib), 0},
		"another CronJob":               {false, job("bill-29411001", 0), 0},
		"a Job by hand of such a name":  {false, job("report-7", 0), 0},
		"a name that is a minute alone": {false, job("29411001", 0), 0},
	} {
		var h Habits
		p := job("report-29411000", 0)
		at := live(&h, p, begin, 30, func(s int) int { return min(100*s, 1000) })
		if tc.failed {
			h.Failed(at, p.UID)
		}
		p.Finished, p.Succeeded = true, true
		h.Succeeded(at, p)
		h.Succeeded(at, p)
		if got := h.Bound(tc.next) / mib; got != tc.want {
			t.Errorf("%s: %d MiB, want %d", name, got, tc.want)
		}
	}
}
