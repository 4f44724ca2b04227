package main

import (
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"spillway/agent/habit"
	"spillway/agent/policy"
	apps "spillway/test/apps/curve"
	"spillway/test/race"
)

// TestApps plays the recorded applications against the limits and the baseline.
func TestApps(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the baseline was recorded on amd64, and arithmetic may be fused elsewhere")
	}
	base, err := readBaseline(appsBaseline)
	if err != nil {
		t.Fatal(err)
	}
	all := makeApps()
	if err := base.fits(0, all, hashApps); err != nil {
		t.Fatal(err)
	}
	if len(base.tallies) != len(all) {
		t.Fatalf("the baseline has %d episodes, want %d", len(base.tallies), len(all))
	}
	p := &population{episodes: all, rules: slices.DeleteFunc(rules(), func(r rule) bool { return r.name != now && r.name != "oracle" })}
	if race.Enabled {
		p.episodes = all[:sample()]
		p.run(nil)
		return
	}
	p.run(nil)
	oracle := p.of("oracle")
	s, was := sum(all, p.of(now), oracle, ""), sum(all, base.tallies, oracle, "")
	for _, problem := range allowedApps.check(&s, needlessFits(all, p.of(now))) {
		t.Error(problem)
	}
	if s.needless[1] >= was.needless[1] || s.innocents > was.innocents {
		t.Errorf("%d needless evictions of known pods and %d innocents, at 0abab02 %d and %d", s.needless[1], s.innocents, was.needless[1], was.innocents)
	}
	for i, e := range all {
		if a := p.of("oracle")[i]; a.innocents > 0 || !e.Crosses && a.evicted > 0 {
			t.Errorf("the oracle evicts %d pods, %d innocents among them, in episode %d", a.evicted, a.innocents, e.Index)
		}
	}
}

// TestAppEpisodes: each curve is played at each margin, and a leak crosses at all of them.
func TestAppEpisodes(t *testing.T) {
	all := makeApps()
	if n := len(loadApps().curves) * len(appMargins) * 2 * 2 * len(appExits); len(all) != n {
		t.Errorf("%d episodes, want %d", len(all), n)
	}
	for _, e := range all {
		c := curveOf(t, e.Kind)
		w := newWorld(e)
		w.bare = true
		w.advance(0)
		if got := w.margin(0); math.Abs(got-e.Margin) > 0.03*e.Margin {
			t.Errorf("episode %d (%s): the margin is %.0f MiB when the load begins, want %.0f", e.Index, e.Kind, got/mib, e.Margin/mib)
		}
		if _, known := appHosts[c.Application]; !known {
			t.Errorf("%s: it is not said how a pod of %s runs", c.Name, c.Application)
		}
		switch {
		case c.End == apps.Leak && !e.Crosses:
			t.Errorf("episode %d (%s): a leak does not cross a margin of %.1f × what was recorded", e.Index, e.Kind, e.factor())
		case c.End != apps.Leak && e.Crosses != (e.factor() < 1):
			t.Errorf("episode %d (%s): crosses %v at a margin of %.1f × its growth", e.Index, e.Kind, e.Crosses, e.factor())
		}
	}
}

func curveOf(t *testing.T, name string) *apps.Curve {
	t.Helper()
	for _, c := range loadApps().curves {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no curve %s", name)
	return nil
}

// TestHistoryOfApps: what the episodes give as known is what package habit learns of one such run of a service: a peak that it
// came back from, or a level at which it stood for some minutes. A leak teaches no bound near its height.
func TestHistoryOfApps(t *testing.T) {
	for _, c := range loadApps().curves {
		var h habit.Habits
		p := &policy.Pod{
			Namespace: "apps", Name: "a-0", UID: "a", Grace: 30 * time.Second, StartedAt: epoch, Owner: policy.Owner{Kind: "ReplicaSet", Name: "a-1"},
			Labels: map[string]string{"pod-template-hash": "1"},
		}
		a := loadApps().amounts
		anon, shmem := a[form(c.Name+"/anon")], a[form(c.Name+"/shmem")]
		end := c.Seconds()
		if c.End == apps.Stays {
			end += 400
		}
		for at := 0.0; at <= end; at++ {
			h.Seen(epoch.Add(time.Duration(at*float64(time.Second))), p, uint64(anon.value(at)+shmem.value(at)))
		}
		next := *p
		next.UID, next.Name = "b", "a-1"
		got, most := float64(h.Bound(&next)), peak(c, false)
		rise := most - float64(c.Points[0].Held())
		switch {
		case rise < 64*mib: // page cache
		case c.End == apps.Leak && got > most/2: // a client's first load may be a return
			t.Errorf("%s: a leak to %.0f MiB taught a bound of %.0f MiB", c.Name, most/mib, got/mib)
		case c.End == apps.Stays && (got < most-rise/10 || got > most+rise/5):
			t.Errorf("%s: learned a bound of %.0f MiB, its peak is %.0f MiB", c.Name, got/mib, most/mib)
		}
		t.Logf("%s: peak %.0f MiB, learned %.0f MiB", c.Name, most/mib, got/mib)
	}
}

func TestReadAppsRefuses(t *testing.T) {
	good, err := recordings.ReadFile(appsFolder + "/redis-save.gz")
	if err != nil {
		t.Fatal(err)
	}
	for want, files := range map[string]fstest.MapFS{
		"no curve":                        {},
		"is the curve of redis-save":      {appsFolder + "/other.gz": {Data: good}},
		"other.gz: read curve: gzip":      {appsFolder + "/other.gz": {Data: []byte("no curve at all")}},
		"redis-save.gz: read curve: unex": {appsFolder + "/redis-save.gz": {Data: good[:len(good)/2]}},
	} {
		if _, err := readApps(files); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestAmount: between readings, after the end, and how a leak goes on.
func TestAmount(t *testing.T) {
	a := amount{at: []float64{0, 1, 2, 4}, v: []float64{10, 20, 20, 40}}
	for at, want := range map[float64]float64{-1: 10, 0: 10, 0.5: 15, 1.5: 20, 3: 30, 4: 40, 100: 40} {
		if got := a.value(at); got != want {
			t.Errorf("at %v s: %v, want %v", at, got, want)
		}
	}
	a.again = true
	for at, want := range map[float64]float64{3: 30, 4: 40, 5: 50, 6: 60, 8: 80} {
		if got := a.value(at); got != want {
			t.Errorf("a leak at %v s: %v, want %v", at, got, want)
		}
	}
}

// TestAppLimits: each limit is broken by what it names.
func TestAppLimits(t *testing.T) {
	l := appLimits{early: 1, innocents: 8, needlessFits: 3, needlessKnown: 10, needlessUnknown: 10, crossed: 50, ended: 75}
	at := sums{needless: [2]int{10, 10}, crossings: 50, tally: tally{innocents: 8, early: 1, victims: 20, polite: 15}}
	if bad := l.check(&at, 3); len(bad) != 0 {
		t.Errorf("what is allowed breaks the limits: %v", bad)
	}
	for name, worsen := range map[string]func(s *sums){
		"early": func(s *sums) { s.early++ }, "innocents": func(s *sums) { s.innocents++ }, "known": func(s *sums) { s.needless[1]++ },
		"unknown": func(s *sums) { s.needless[0]++ }, "crossed": func(s *sums) { s.crossings++ }, "polite": func(s *sums) { s.polite-- },
	} {
		s := at
		if worsen(&s); len(l.check(&s, 3)) != 1 {
			t.Errorf("%s: %v", name, l.check(&s, 3))
		}
	}
	if len(l.check(&at, 4)) != 1 {
		t.Errorf("fits: %v", l.check(&at, 4))
	}
}
