package policy

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// evicted is a past eviction of the workload that pod(name) belongs to.
func evicted(name string, ago time.Duration) PastEviction {
	return PastEviction{OwnerUID: "owner-" + name, Namespace: "shop", OwnerKind: "ReplicaSet", OwnerName: name, At: testNow.Add(-ago)}
}

func returned(e PastEviction) PastEviction { e.ReturnedHere = true; return e }

// waits is an eviction whose replacement does not run.
func waits(e PastEviction) PastEviction { e.Waiting = "0/2 nodes are available"; return e }

func withHistory(in Input, h ...PastEviction) Input {
	in.History, in.Config.History = h, DefaultHistory()
	return in
}

func TestHistory(t *testing.T) {
	flat := func() []Candidate { return []Candidate{pod("a", size(900)), pod("b", size(800))} }
	two := func() []Candidate { return []Candidate{pod("a", size(900), grows(50)), pod("b", size(800), grows(50))} }
	careless := func(in Input) Input { in.Config.History.AwaitReplacement = false; return in }
	off := func(in Input) Input { in.Config.History = HistoryConfig{}; return in }
	thrice := []PastEviction{evicted("a", 2*time.Hour), evicted("a", 9*time.Hour), evicted("a", 23*time.Hour)}
	for _, tc := range []struct {
		name   string
		in     Input
		state  string
		set    []string
		of     string // the pod that is looked at
		held   string // its protection or why it is excluded
		reason string
	}{
		{"cooldown: another goes", withHistory(input(byUsed(700), flat()...), evicted("a", time.Minute)), StateVictim, []string{"b"}, "a", "evicted 60 s ago, cooldown 5m0s", ""},
		{"cooldown is over", withHistory(input(byUsed(700), flat()...), evicted("a", 5*time.Minute)), StateVictim, []string{"a"}, "a", "", ""},
		{"the newest counts, in any order", withHistory(input(byUsed(700), flat()...), evicted("a", time.Minute), evicted("a", time.Hour)), StateVictim, []string{"b"}, "a", "60 s ago", ""},
		{"the clock was set back: held", withHistory(input(byUsed(700), flat()...), evicted("a", -time.Hour)), StateVictim, []string{"b"}, "a", "evicted 0 s ago", ""},
		{"no memory configured", off(withHistory(input(byUsed(700), flat()...), evicted("a", time.Minute))), StateVictim, []string{"a"}, "a", "", ""},
		{"both grow by ETA: the cooldown holds none", withHistory(input(byETA(50), two()...), evicted("a", time.Minute)), StateVictim, []string{"a"}, "a", "", ""},
		{"both grow, by percentage: one cools down", withHistory(input(byUsed(500), two()...), evicted("a", time.Minute)), StateVictim, []string{"b"}, "a", "cooldown", ""},
		{"all that would help cool down", withHistory(input(byUsed(500), two()...), evicted("a", time.Minute), evicted("b", 2*time.Minute)), StateHistory, nil, "a", "cooldown", "shop/a a pod of its workload was evicted 60 s ago, cooldown 5m0s; shop/b"},
		{"cooldown holds nobody at critical", critical(withHistory(input(byETA(100), two()...), evicted("a", time.Minute), evicted("b", 2*time.Minute))), StateVictim, []string{"a", "b"}, "a", "", ""},
		{"the leader of the growth is never held", withHistory(input(byETA(100), pod("a", size(900), grows(100)), pod("b", size(800))), returned(evicted("a", time.Minute))),
			StateVictim, []string{"a"}, "a", "", "boomerang: its workload was evicted, came back to this node and grows again"},
		{"the same workload name in another namespace", withHistory(input(byUsed(700), flat()...), PastEviction{Namespace: "bank", OwnerKind: "ReplicaSet", OwnerName: "a", At: testNow}), StateVictim, []string{"a"}, "a", "", ""},
		{"known by name alone", withHistory(input(byUsed(700), flat()...), PastEviction{Namespace: "shop", OwnerKind: "ReplicaSet", OwnerName: "a", At: testNow}), StateVictim, []string{"b"}, "a", "cooldown", ""},
		{"made anew under the same name", withHistory(input(byUsed(700), flat()...), PastEviction{OwnerUID: "older", Namespace: "shop", OwnerKind: "ReplicaSet", OwnerName: "a", At: testNow}), StateVictim, []string{"a"}, "a", "", ""},
		{"it came back: another goes", withHistory(input(byUsed(700), flat()...), returned(evicted("a", 30*time.Minute))), StateVictim, []string{"b"}, "a", "came back to this node, and it does not grow", ""},
		{"it came back long ago", withHistory(input(byUsed(700), flat()...), returned(evicted("a", 61*time.Minute))), StateVictim, []string{"a"}, "a", "", ""},
		{"it came back, nobody else helps", withHistory(input(byUsed(850), flat()...), returned(evicted("a", 30*time.Minute))), StateHistory, nil, "a", "came back", "left alone because of past evictions; shop/a its workload was evicted and came back"},
		{"nor at critical, without a part in the growth", critical(withHistory(input(byUsed(850), flat()...), returned(evicted("a", 30*time.Minute)))), StateHistory, nil, "a", "came back", ""},
		{"a pod made before the eviction is no replacement", withHistory(input(byUsed(700), pod("a", size(900), age(20*time.Minute)), pod("b", size(800))), evicted("a", 19*time.Minute)), StateVictim, []string{"a"}, "a", "", ""},
		{"a pod made after the eviction is its replacement", withHistory(input(byUsed(700), pod("a", size(900), age(20*time.Minute)), pod("b", size(800))), evicted("a", 21*time.Minute)), StateVictim, []string{"b"}, "a", "came back", ""},
		{"made in the second of the eviction", withHistory(input(byUsed(700), pod("a", size(900), age(20*time.Minute)), pod("b", size(800))), evicted("a", 20*time.Minute-600*time.Millisecond)), StateVictim, []string{"b"}, "a", "came back", ""},
		{"a set of two does not take it either", withHistory(input(byUsed(1700), flat()...), returned(evicted("a", 30*time.Minute))), StateNoCover, nil, "a", "would not end", ""},
		{"its replacement does not run, the cooldown is long over: another goes", withHistory(input(byUsed(700), flat()...), waits(evicted("a", 5*time.Hour))), StateVictim, []string{"b"}, "a", "does not run: 0/2 nodes are available", ""},
		{"an older one does not run", withHistory(input(byUsed(700), flat()...), evicted("a", time.Hour), waits(evicted("a", 5*time.Hour))), StateVictim, []string{"b"}, "a", "does not run", ""},
		{"both grow, by percentage: one waits for its replacement", withHistory(input(byUsed(500), two()...), waits(evicted("a", time.Hour))), StateVictim, []string{"b"}, "a", "does not run", ""},
		{"nobody else helps", withHistory(input(byUsed(850), flat()...), waits(evicted("a", time.Hour))), StateHistory, nil, "a", "does not run", "because of past evictions; shop/a the replacement of an evicted pod of its workload does not run: 0/2 nodes"},
		{"a missing replacement holds no grower at critical", critical(withHistory(input(byETA(100), two()...), waits(evicted("a", time.Hour)))), StateVictim, []string{"a", "b"}, "a", "", ""},
		{"and holds others then", critical(withHistory(input(byUsed(850), flat()...), waits(evicted("a", time.Hour)))), StateHistory, nil, "a", "does not run", ""},
		{"nor the leader of the growth", withHistory(input(byETA(100), pod("a", size(900), grows(100)), pod("b", size(800))), waits(evicted("a", time.Hour))), StateVictim, []string{"a"}, "a", "", ""},
		{"not waited for by config", careless(withHistory(input(byUsed(700), flat()...), waits(evicted("a", 5*time.Hour)))), StateVictim, []string{"a"}, "a", "", ""},
		{"of another workload", withHistory(input(byUsed(700), flat()...), waits(evicted("other", time.Hour))), StateVictim, []string{"a"}, "a", "", ""},
		{"three times within a day, flat: spared", withHistory(input(byUsed(700), flat()...), thrice...), StateVictim, []string{"b"}, "a", "evicted 3 times already", ""},
		{"twice is not often", withHistory(input(byUsed(700), flat()...), thrice[:2]...), StateVictim, []string{"a"}, "a", "", ""},
		{"the third was longer ago", withHistory(input(byUsed(700), flat()...), thrice[0], thrice[1], evicted("a", 24*time.Hour)), StateVictim, []string{"a"}, "a", "", ""},
		{"three times, and it grows: it goes, and the record says so", withHistory(input(byETA(100), pod("a", size(900), grows(100))), thrice...), StateVictim, []string{"a"}, "a", "", "repeat offender: its workload was evicted 3 times"},
		{"a cooldown and a refusal", withHistory(input(byUsed(500), pod("a", size(900), grows(50), refused), pod("b", size(800), grows(50))), evicted("b", time.Minute)), StateBlocked, nil, "b", "cooldown", "PodDisruptionBudget; shop/b a pod of its workload"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(tc.in)
			c := find(d.Pods, tc.of)
			held := c.Protection.Reason + c.Excluded
			if d.State != tc.state || !slices.Equal(setNames(d), append([]string{}, tc.set...)) || !strings.Contains(d.Reason, tc.reason) {
				t.Errorf("state %s, set %v: %s", d.State, setNames(d), d.Reason)
			}
			if tc.held == "" && slices.Contains(tc.set, tc.of) && held != "" || !strings.Contains(held, tc.held) {
				t.Errorf("%s is held because %q, want %q", tc.of, held, tc.held)
			}
		})
	}
}

func TestRepeatTerm(t *testing.T) {
	in := withHistory(input(Need{}, pod("a", grows(50)), pod("b", grows(50)), pod("flat")), evicted("a", time.Hour), evicted("a", 2*time.Hour), evicted("flat", time.Hour), evicted("flat", time.Hour), evicted("flat", time.Hour))
	in.Config.Weights = Weights{TermRepeat: 1, TermGrowthShare: 1}
	ranked := Rank(in)
	// Two of three times: (66.7 + 50) / 2.
	for name, want := range map[string]float64{"a": (200.0/3 + 50) / 2, "b": 25, "flat": 0} {
		if c := find(ranked, name); !near(c.Score, want) {
			t.Errorf("%s scores %v, want %v: %+v", name, c.Score, want, c.Terms)
		}
	}
}

// TestLoopOfACronJob: each Job has a UID of its own, and yet two of them in a row are a loop. The third one waits until critical, so
// that it can show that it ends by itself; then it does not wait for a pause, as the next one comes when it is due.
func TestLoopOfACronJob(t *testing.T) {
	past := func(job string, ago, created time.Duration) PastEviction {
		return PastEviction{OwnerUID: "uid-" + job, Namespace: "shop", OwnerKind: "Job", OwnerName: job, At: testNow.Add(-ago), Created: testNow.Add(-created)}
	}
	twice := []PastEviction{past("report-29411000", 2*time.Minute, 3*time.Minute), past("report-29411001", time.Minute, 100*time.Second)}
	for _, tc := range []struct {
		name     string
		job      string
		history  []PastEviction
		critical bool
		held     bool
	}{
		{"the third", "report-29411002", twice, false, true},
		{"the third, at critical", "report-29411002", twice, true, false},
		{"the second", "report-29411001", twice[:1], false, false},
		{"of another CronJob", "bill-29411002", twice, false, false},
		{"a Job by hand", "report-2", twice, false, false},
	} {
		p := pod("a", size(900), grows(100), age(30*time.Second))
		p.Pod.Owner = Owner{APIVersion: "batch/v1", Kind: "Job", Name: tc.job, UID: "uid-" + tc.job}
		p.Workload = Workload{KnownRetries: true, Retries: 6}
		in := withHistory(input(byETA(100), p), tc.history...)
		if tc.critical {
			in = critical(in)
		}
		d := Decide(in)
		if held := d.State == StateHistory; held != tc.held || !held && d.State != StateVictim || held && !strings.Contains(d.Reason, "evictions do not end it") {
			t.Errorf("%s: state %s: %s", tc.name, d.State, d.Reason)
		}
	}
}
