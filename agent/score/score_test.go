package score

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

const mib = 1 << 20

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// rig is a node that is read once a second.
type rig struct {
	s        Score
	at       time.Duration
	wall     time.Time
	margin   int64
	readable int
	under    bool
	pods     map[string]Pod
	got      []status.WouldEvict
}

func newRig() *rig {
	return &rig{at: time.Hour, wall: noon, margin: 500 * mib, readable: 2, pods: map[string]Pod{"a": here(1000), "b": here(1000)}}
}

func here(held uint64) Pod { return Pod{Life: Here, Fresh: true, Held: held * mib} }

// name has pods named that gained 600 MiB in the minute before.
func (r *rig) name(uids ...string) {
	for _, uid := range uids {
		r.got = append(r.got, r.s.Name(Named{Decision: "d-" + uid, Namespace: "shop", Pod: uid, UID: uid, At: r.at, Wall: r.wall, Held: r.pods[uid].Held, Gained: 600 * mib,
			Margin: r.margin, Readable: r.readable})...)
	}
}

func (r *rig) pass(d time.Duration) {
	for range int(d / time.Second) {
		r.skip(time.Second)
		r.step()
	}
}

func (r *rig) step() {
	r.got = append(r.got, r.s.Step(Facts{At: r.at, Wall: r.wall, Margin: r.margin, Signal: "memory.available", Readable: r.readable, UnderMark: r.under,
		Pod: func(uid string) Pod { return r.pods[uid] }})...)
}

func (r *rig) skip(d time.Duration) { r.at, r.wall = r.at+d, r.wall.Add(d) }

func (r *rig) act(a Act) { a.Wall = r.wall; r.got = append(r.got, r.s.Act(a)...) }

func (r *rig) kubelet(pod, message string) {
	r.act(ByKubelet("shop/"+pod, pod, message, r.wall))
}

func (r *rig) kernel(pod, domain string) {
	if a, ok := ByKernel(&status.OOMKill{Namespace: "shop", Pod: pod, PodUID: pod, Domain: domain}, r.wall); ok {
		r.act(a)
	}
}

// restart is another agent on the same node.
func (r *rig) restart(t *testing.T, bootID string) {
	t.Helper()
	data, err := r.s.Save("boot-1", r.wall)
	if err != nil {
		t.Fatal(err)
	}
	r.s = Score{}
	judged, err := r.s.Load(data, bootID, r.wall)
	if err != nil {
		t.Fatal(err)
	}
	r.got = append(r.got, judged...)
}

const lowMemory = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "

// TestVerdicts: what was named, what happened, and the verdicts in the order in which they were given.
func TestVerdicts(t *testing.T) {
	for _, tc := range []struct {
		name   string
		run    func(t *testing.T, r *rig)
		want   []string // UID, verdict and a part of why
		open   int
		same   int
		others int
	}{
		{"waits", func(_ *testing.T, r *rig) { r.name("a"); r.pass(14 * time.Minute) }, nil, 1, 0, 0},
		{"the threshold is crossed", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(7 * time.Second)
			r.margin = -mib
			r.pass(3 * time.Second)
		}, []string{"a crossed memory.available crossed its threshold 8 s later"}, 0, 0, 0},
		{"and the kubelet takes the same pod", func(_ *testing.T, r *rig) {
			r.name("a")
			r.margin = -mib
			r.pass(8 * time.Second)
			r.kubelet("a", lowMemory)
			r.pods["a"] = Pod{Life: Ended}
			r.margin, r.under = 500*mib, true
			r.pass(2 * time.Minute)
			r.kubelet("b", lowMemory) // of another shortage
		}, []string{"a crossed"}, 0, 1, 0},
		{"and the kubelet takes an innocent, then the same pod", func(_ *testing.T, r *rig) {
			r.name("a")
			r.margin = -mib
			r.pass(8 * time.Second)
			r.kubelet("b", lowMemory)
			r.kubelet("a", lowMemory)
		}, []string{"a crossed"}, 0, 1, 1},
		{"the kubelet acts before a crossing is read", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(9 * time.Second)
			r.kubelet("b", lowMemory)
			r.pods["b"] = Pod{Life: Ended}
			r.pass(time.Second)
		}, []string{"a acted the kubelet acted 9 s later"}, 0, 0, 1},
		{"the kubelet evicts the pod, whose controller deletes it at once", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pods["a"] = Pod{Life: Deleted}
			r.pass(2 * time.Second)
			r.kubelet("a", lowMemory)
			r.pass(9 * time.Second)
		}, []string{"a acted"}, 0, 1, 0},
		{"the kubelet evicts it for its disk", func(_ *testing.T, r *rig) {
			r.name("a", "b")
			r.pass(time.Second)
			r.kubelet("a", "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Gi\". ")
		}, []string{"a not-judged another reason than memory: Usage of EmptyDir"}, 1, 0, 0},
		{"the kernel kills as the node is out of memory", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(2 * time.Second)
			r.kernel("a", "node")
		}, []string{"a acted the kernel acted 2 s later"}, 0, 1, 0},
		{"the kernel kills in another pod at the limit of kubepods", func(_ *testing.T, r *rig) { r.name("a"); r.pass(2 * time.Second); r.kernel("b", "kubepods") },
			[]string{"a acted"}, 0, 0, 1},
		{"a kill at the limit of the container ends the growth", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(2 * time.Second)
			r.kernel("a", "container")
			r.pods["a"], r.under = here(20), true
			r.pass(Quiet)
		}, []string{"a ended the pod fell from 1000.0 MiB to 20.0 MiB"}, 0, 0, 0},
		{"a kill for an unknown reason", func(_ *testing.T, r *rig) { r.name("a", "b"); r.pass(time.Second); r.kernel("a", "unknown") },
			[]string{"a not-judged not known whose memory"}, 1, 0, 0},
		{"the pod falls by itself", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(5 * time.Second)
			r.pods["a"], r.under = here(420), true
			r.pass(Quiet + time.Second)
		}, []string{"a ended the growth ended by itself: the pod fell from 1000.0 MiB to 420.0 MiB"}, 0, 0, 0},
		{"the pod stops", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pods["a"] = here(1200)
			r.pass(5 * time.Second)
			r.under = true
			r.pass(Quiet - time.Second)
			if len(r.got) > 0 {
				r.got = append(r.got, status.WouldEvict{Why: "too early"})
			}
			r.pass(time.Second)
		}, []string{"a ended the pod stopped at 1.17 GiB"}, 0, 0, 0},
		{"the pod rests and grows on", func(_ *testing.T, r *rig) {
			r.name("a")
			r.under = true
			r.pass(Quiet - 2*time.Second)
			r.pods["a"] = here(1100)
			r.pass(Quiet - 22*time.Second)
			r.pods["a"] = here(1110) // slowly
			r.pass(20 * time.Second)
			r.margin = -mib
			r.pass(time.Second)
		}, []string{"a crossed 357 s later"}, 0, 0, 0},
		{"the pod stops, and another crosses the threshold", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(160 * time.Second)
			r.pods["b"], r.margin = here(3000), -mib
			r.pass(time.Second)
		}, []string{"a not-judged crossed by other growth: the pod had not grown for 161 s"}, 0, 0, 0},
		{"the pod rose until half a minute ago", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(60 * time.Second)
			r.pods["a"] = here(1004)
			r.pass(29 * time.Second)
			r.margin = -mib
			r.pass(2 * time.Second)
		}, []string{"a crossed 90 s later"}, 0, 0, 0},
		{"the pod stops, and the kubelet takes another", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(40 * time.Second)
			r.kubelet("b", lowMemory)
		}, []string{"a not-judged the growth of this pod had ended: the pod had not grown for 40 s"}, 0, 0, 0},
		{"below 0 before, and nothing changes", func(_ *testing.T, r *rig) {
			r.margin = -20 * mib
			r.name("a")
			r.pass(10 * time.Second)
			r.margin = -35 * mib
			r.pass(10 * time.Second)
		}, nil, 1, 0, 0},
		{"below 0 before, and nothing comes of it", func(_ *testing.T, r *rig) {
			r.margin = -20 * mib
			r.name("a")
			r.pass(Longest + time.Second)
		}, []string{"a not-judged had been crossed before the pod was named"}, 0, 0, 0},
		{"below 0 before, and it falls on", func(_ *testing.T, r *rig) {
			r.margin = -20 * mib
			r.name("a")
			r.pass(5 * time.Second)
			r.margin = -36 * mib
			r.pass(time.Second)
		}, []string{"a crossed 6 s later"}, 0, 0, 0},
		{"below 0 before, and the kubelet acts", func(_ *testing.T, r *rig) {
			r.margin = -20 * mib
			r.name("a")
			r.pass(5 * time.Second)
			r.kubelet("a", lowMemory)
		}, []string{"a acted the kubelet acted 5 s later"}, 0, 1, 0},
		{"below 0 before, above it, and crossed again", func(_ *testing.T, r *rig) {
			r.margin = -20 * mib
			r.name("a")
			r.pass(5 * time.Second)
			r.margin = mib
			r.pass(5 * time.Second)
			r.margin = -mib
			r.pass(time.Second)
		}, []string{"a crossed 11 s later"}, 0, 0, 0},
		{"below 0, in the readings after the name", func(t *testing.T, r *rig) {
			r.margin, r.readable = -20*mib, 0 // not read as it was named
			r.name("a")
			r.readable = 2
			r.pass(5 * time.Second)
			r.restart(t, "boot-1")
			r.pass(5 * time.Second)
		}, nil, 1, 0, 0},
		{"the pod ends by itself", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pods["a"] = Pod{Life: Ended}
			r.pass(time.Second)
			delete(r.pods, "a") // and is removed: its growth had ended before
			r.pass(Quiet)
		}, []string{"a ended the pod ended"}, 0, 0, 0},
		{"no crossing for long", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(Longest + time.Second)
			r.margin = -1
			r.pass(time.Second)
		},
			[]string{"a ended not crossed within 15 min"}, 0, 0, 0},
		{"the pod is deleted", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pods["a"] = Pod{Life: Deleted}
			r.pass(10 * time.Second)
			r.margin = -1
			r.pass(time.Second)
		}, []string{"a not-judged deleted before it could be judged"}, 0, 0, 0},
		{"the pod falls, and other growth crosses the threshold", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pods["a"] = here(500)
			r.pass(5 * time.Second)
			r.margin = -1
			r.pass(time.Second)
		}, []string{"a not-judged crossed by other growth: the pod had fallen from 1000.0 MiB to 500.0 MiB"}, 0, 0, 0},
		{"the pod falls, rises again and crosses", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pods["a"] = here(500)
			r.pass(15 * time.Second)
			r.pods["a"], r.margin = here(900), -1
			r.pass(time.Second)
		}, []string{"a crossed 16 s later"}, 0, 0, 0},
		{"the pod falls, and the kubelet takes another", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pods["a"] = here(500)
			r.pass(time.Second)
			r.kubelet("b", lowMemory)
		}, []string{"a not-judged acted on shop/b after the growth of this pod had ended: the pod had fallen"}, 0, 0, 0},
		{"the node is not read", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(time.Second)
			r.skip(Gap + time.Second)
			r.margin = -1
			r.step()
		}, []string{"a not-judged the node's margin could not be read for 21 s"}, 0, 0, 0},
		{"one threshold of two is not read", func(_ *testing.T, r *rig) {
			r.name("a")
			r.under = true
			r.pass(time.Second)
			r.readable = 1
			r.pass(Quiet)
		}, []string{"a not-judged the node's margin could not be read for 21 s"}, 0, 0, 0},
		{"the pod is not read", func(_ *testing.T, r *rig) {
			r.name("a")
			r.under = true
			r.pass(time.Second)
			r.pods["a"] = Pod{Life: Here, Held: 1000 * mib}
			r.pass(Gap + time.Second)
		}, []string{"a not-judged the pod's memory could not be read for 21 s"}, 0, 0, 0},
		{"the pods are not known", func(_ *testing.T, r *rig) { r.name("a"); r.under = true; r.pods["a"] = Pod{}; r.pass(Quiet) },
			[]string{"a not-judged the pod's memory could not be read for 21 s"}, 0, 0, 0},
		{"readings that stand still give no verdict", func(_ *testing.T, r *rig) {
			r.name("a")
			r.under, r.margin = true, -1
			for range 1000 {
				r.wall = r.wall.Add(time.Second)
				r.step()
			}
		}, nil, 1, 0, 0},
		{"a short restart", func(t *testing.T, r *rig) {
			r.name("a")
			r.pass(10 * time.Second)
			r.restart(t, "boot-1")
			r.skip(Gap - time.Second)
			r.step()
			r.margin = -1
			r.pass(time.Second)
		}, []string{"a crossed 30 s later"}, 0, 0, 0},
		{"a long restart", func(t *testing.T, r *rig) {
			r.name("a")
			r.restart(t, "boot-1")
			r.skip(2 * time.Minute)
			r.margin = -1
			r.step()
		}, []string{"a not-judged could not be read for 120 s"}, 0, 0, 0},
		{"another boot", func(t *testing.T, r *rig) {
			r.name("a")
			r.restart(t, "boot-2")
			r.at, r.margin = time.Minute, 500*mib
			r.name("b")
			r.margin = -1
			r.pass(time.Second)
		}, []string{"a not-judged the node was started again", "b crossed 1 s later"}, 0, 0, 0},
		{"the wall clock steps", func(_ *testing.T, r *rig) {
			r.name("a")
			r.wall = r.wall.Add(-300 * 24 * time.Hour)
			r.under = true
			r.pass(Quiet - time.Second)
			r.wall = r.wall.Add(900 * 24 * time.Hour)
			r.pass(time.Second)
		}, []string{"a ended the pod stopped"}, 0, 0, 0},
		{"the readings' clock goes back", func(_ *testing.T, r *rig) { r.name("a"); r.pass(time.Second); r.at = time.Minute; r.pass(Quiet) },
			[]string{"a not-judged clock of the readings went back"}, 0, 0, 0},
		{"two at once", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(5 * time.Second)
			r.name("b")
			r.pass(5 * time.Second)
			r.pods["b"] = here(300)
			r.pass(time.Second)
			r.margin = -1
			r.pass(time.Second)
			r.kubelet("b", lowMemory)
		}, []string{"a crossed 12 s later", "b not-judged other growth"}, 0, 0, 1},
		{"two at once, of which the kubelet takes one", func(_ *testing.T, r *rig) {
			r.name("a", "b")
			r.margin = -1
			r.pass(time.Second)
			r.kubelet("a", lowMemory)
		}, []string{"a crossed", "b crossed"}, 0, 1, 0},
		{"the same pod again", func(_ *testing.T, r *rig) {
			r.name("a")
			r.pass(90 * time.Second)
			r.name("a")
			r.pods["a"], r.margin = here(1100), -1
			r.pass(time.Second)
			r.name("a") // it would have been gone
			r.pass(2 * settle)
			r.name("a") // likewise: the shortage goes on
			r.pass(time.Second)
			r.margin, r.under = 500*mib, true
			r.pass(settle)
			r.under = false
			r.name("a") // another shortage
		}, []string{"a crossed 91 s later"}, 1, 0, 0},
		{"Spillway evicts a pod", func(_ *testing.T, r *rig) {
			r.name("a", "b")
			r.pass(time.Second)
			r.got = append(r.got, r.s.Void(r.wall, "Spillway evicted a pod")...)
			r.margin = -1
			r.pass(time.Second)
		}, []string{"a not-judged Spillway evicted a pod", "b not-judged Spillway evicted a pod"}, 0, 0, 0},
		{"it would have been refused", func(_ *testing.T, r *rig) {
			r.name("a", "b")
			r.s.Withdraw("a")
			r.margin = -1
			r.pass(time.Second)
			r.s.Withdraw("b") // it was judged
			r.kubelet("b", lowMemory)
		}, []string{"b crossed"}, 0, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig()
			tc.run(t, r)
			if len(r.got) != len(tc.want) {
				t.Fatalf("got %d verdicts %+v, want %q", len(r.got), r.got, tc.want)
			}
			for i, want := range tc.want {
				part := strings.SplitN(want+" ", " ", 3)
				if got := r.got[i]; got.UID != part[0] || got.Verdict != part[1] || !strings.Contains(got.Why, strings.TrimSpace(part[2])) || got.JudgedAt == nil {
					t.Errorf("got %+v, want %q", got, want)
				}
			}
			o := r.s.Summary()
			if o.WouldEvict != len(tc.want) || o.Open != tc.open || o.SamePod != tc.same || o.OtherPod != tc.others || len(o.Newest) < len(tc.want)+tc.open {
				t.Errorf("summary %+v, want %d judged, %d open, same %d, other %d", o, len(tc.want), tc.open, tc.same, tc.others)
			}
		})
	}
}

// A pod that is named for its page cache holds that too, and is told from one that fell.
func TestCache(t *testing.T) {
	r := newRig()
	reader := func(cache uint64) Pod { return Pod{Life: Here, Fresh: true, Held: 10 * mib, Cache: cache * mib} }
	r.s.Name(Named{UID: "a", At: r.at, Wall: r.wall, Held: 2010 * mib, Cache: true})
	r.pods["a"] = reader(2500)
	r.pass(10 * time.Second)
	r.pods["a"], r.under = reader(100), true
	r.pass(Quiet)
	if len(r.got) != 1 || r.got[0].Verdict != status.VerdictEnded || !strings.Contains(r.got[0].Why, "from 2.45 GiB to 110.0 MiB") {
		t.Errorf("%+v", r.got)
	}
}

// Names of a pod that is counted once keep how often it was named, and the lowest margin.
func TestRepeatsAndLowestMargin(t *testing.T) {
	r := newRig()
	r.name("a", "a", "a")
	r.margin = 10 * mib
	r.pass(time.Second)
	r.margin, r.under = 300*mib, true
	r.pass(Quiet)
	w := r.s.Summary().Newest[0]
	if w.Repeats != 2 || *w.LowestMargin != 10*mib || w.DecisionID != "d-a" || !w.At.Equal(noon) {
		t.Errorf("%+v", w)
	}
	if text := w.Words(); text != "the growth ended by itself: the pod stopped at 1000.0 MiB; lowest margin 10.0 MiB" {
		t.Error(text)
	}
}

// Lists are bounded, counts are not.
func TestBounds(t *testing.T) {
	r := newRig()
	for i := range mostOpen + 3 {
		uid := fmt.Sprint("p", i)
		r.pods[uid] = here(1000)
		r.name(uid)
	}
	if len(r.got) != 3 || r.got[2].Verdict != status.VerdictNotJudged || r.got[2].UID != fmt.Sprint("p", mostOpen+2) || r.got[2].Why != "16 others waited" {
		t.Fatalf("%+v", r.got)
	}
	r.got = append(r.got, r.s.Void(r.wall, "over")...)
	for i := range 500 {
		uid := fmt.Sprint("q", i)
		r.pods[uid] = here(1000)
		r.name(uid)
		r.s.Void(r.wall, "over")
	}
	o := r.s.Summary()
	if o.WouldEvict != 519 || o.NotJudged != 519 || len(o.Newest) != keepJudged || len(r.s.hours) != 1 {
		t.Errorf("%d would-be evictions, %d in the list, %d hours", o.WouldEvict, len(o.Newest), len(r.s.hours))
	}
	for range 10 {
		r.name("a")
		r.s.Act(Act{By: "kernel", Pod: "/system.slice/sshd", Wall: r.wall})
		for i := range 2 * mostTaken {
			r.kubelet(fmt.Sprint("k", i), lowMemory)
		}
	}
	if w := r.s.Summary().Newest[0]; len(w.Taken) != mostTaken || w.Taken[0].Same {
		t.Errorf("%+v", w.Taken)
	}
	data, err := r.s.Save("boot-1", r.wall)
	if err != nil || len(data) > 32<<10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

// Counts are of seven days by the clock of the readings and the time between two boots: steps of the wall clock take nothing away.
func TestSevenDays(t *testing.T) {
	r := newRig()
	one := func() {
		r.name("a")
		r.s.Void(r.wall, "over")
	}
	counts := func(want int) {
		t.Helper()
		if got := r.s.Summary().WouldEvict; got != want {
			t.Errorf("%d would-be evictions, want %d", got, want)
		}
	}
	one()
	r.skip(3 * 24 * time.Hour)
	r.step()
	one()
	r.wall = r.wall.Add(1000 * 24 * time.Hour)
	r.step()
	counts(2)
	r.wall = r.wall.Add(-2000 * 24 * time.Hour)
	r.restart(t, "boot-1")
	counts(2)
	r.skip(3 * 24 * time.Hour)
	r.step()
	counts(2)
	r.skip(25 * time.Hour) // more than seven days after the first
	r.step()
	counts(1)
	data, err := r.s.Save("boot-1", r.wall)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		off  time.Duration // between the boots, by the wall clock
		want int
	}{{time.Hour, 1}, {-time.Hour, 1}, {30 * 24 * time.Hour, 0}} {
		var s Score
		if _, err := s.Load(data, "boot-2", r.wall.Add(tc.off)); err != nil {
			t.Fatal(err)
		}
		if got := s.Summary().WouldEvict; got != tc.want {
			t.Errorf("after %s: %d, want %d", tc.off, got, tc.want)
		}
	}
}

// What cannot be read is no score, and leaves what is there.
func TestLoadDamaged(t *testing.T) {
	r := newRig()
	r.name("a")
	for _, text := range []string{"{", `{"version":2}`, `[]`} {
		if _, err := r.s.Load([]byte(text), "boot-1", noon); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
	if !r.s.Names("a") || !r.s.Since().Equal(noon) {
		t.Error("what was there is gone")
	}
	if _, err := r.s.Load([]byte(`{"version":1,"bootId":"boot-1","at":-5,"clock":-7,"open":[null]}`), "boot-1", noon); err != nil || r.s.Waiting() || r.s.at != 0 || r.s.clock != 0 {
		t.Errorf("%v %+v", err, r.s)
	}
}

// The same calls give the same score, and a saved one goes on as the one that was never saved.
func TestDeterministic(t *testing.T) {
	run := func(save bool) []status.WouldEvict {
		r := newRig()
		for i := range 20 {
			uid := fmt.Sprint("p", i)
			r.pods[uid] = here(uint64(600 + 40*i))
			r.name(uid)
			r.pass(time.Duration(i) * time.Second)
			if i%3 == 0 {
				r.kubelet(uid, lowMemory)
			}
			if r.under = i%4 > 1; save {
				r.restart(t, "boot-1")
			}
		}
		r.under = true
		r.pass(Quiet)
		return r.s.Summary().Newest
	}
	plain, saved := run(false), run(true)
	same := func(a, b status.WouldEvict) bool {
		return fmt.Sprint(a.Words(), a.UID, a.At, a.Repeats) == fmt.Sprint(b.Words(), b.UID, b.At, b.Repeats)
	}
	if len(plain) != 20 || !slices.EqualFunc(plain, saved, same) || !slices.EqualFunc(plain, run(false), same) {
		t.Errorf("%+v\n%+v", plain, saved)
	}
}

// The lowest margin is that of any sample and any hard threshold; what can be read is told of the newest.
func TestLowest(t *testing.T) {
	thresholds := []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true, Bytes: 100}, {Signal: pressure.MemAvailable, Hard: true, Bytes: 50}, {Signal: pressure.MemoryAvailable, Bytes: 900}}
	sample := func(used, available pressure.Bytes) pressure.Sample {
		return pressure.Sample{Capacity: 1000, RootWorkingSet: used, MemAvailable: available}
	}
	for _, tc := range []struct {
		name     string
		samples  []pressure.Sample
		margin   int64
		signal   string
		readable int
	}{
		{"none", nil, 0, "", 0},
		{"the newest", []pressure.Sample{sample(500, 800), sample(700, 800)}, 200, "memory.available", 2},
		{"a dip between", []pressure.Sample{sample(500, 40), sample(600, 800)}, -10, "MemAvailable", 2},
		{"one signal is missing now", []pressure.Sample{sample(500, 800), sample(600, pressure.Unknown)}, 300, "memory.available", 1},
		{"nothing is read", []pressure.Sample{sample(pressure.Unknown, pressure.Unknown)}, 0, "", 0},
	} {
		if margin, signal, readable := Lowest(tc.samples, thresholds); margin != tc.margin || signal != tc.signal || readable != tc.readable {
			t.Errorf("%s: %d %s %d", tc.name, margin, signal, readable)
		}
	}
}

func TestPodOf(t *testing.T) {
	r := policy.Reading{Fresh: true, WorkingSet: 100, ActiveFile: 30}
	for want, p := range map[Pod]policy.Pod{
		{Life: Here, Fresh: true, Held: 70, Cache: 30}: {},
		{Life: Ended}:   {Finished: true},
		{Life: Deleted}: {Finished: true, Terminating: true},
	} {
		if got := PodOf(&p, r); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}
