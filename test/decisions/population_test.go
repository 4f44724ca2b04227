package main

import (
	"runtime"
	"slices"
	"testing"

	"spillway/test/race"
)

// sample is how many episodes the tests play; under the race detector a few have to do.
func sample() int {
	if race.Enabled {
		return 12
	}
	return 120
}

// TestPopulationIsRepeatable: the same seed gives the same episodes and the same figures, on one processor and on many.
func TestPopulationIsRepeatable(t *testing.T) {
	n := sample() / 4
	play := func(processors int) *population {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
		p := &population{seed: defaultSeed, episodes: makeEpisodes(defaultSeed, n), rules: rules()}
		p.run(nil)
		return p
	}
	one, many := play(1), play(4)
	if hashEpisodes(one.episodes) != hashEpisodes(many.episodes) {
		t.Error("the episodes differ")
	}
	for r := range one.rules {
		for i := range one.episodes {
			if a, b := one.tallies[r][i], many.tallies[r][i]; a != b {
				t.Errorf("%s, episode %d: %+v on one processor, %+v on four", one.rules[r].name, i, a, b)
			}
		}
	}
	if hashEpisodes(one.episodes) == hashEpisodes(makeEpisodes(defaultSeed+1, n)) {
		t.Error("two seeds give the same episodes")
	}
}

// TestOracle: who knows the future evicts no pod without a part in the growth, and none that need not go.
func TestOracle(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("arithmetic may be fused elsewhere, and a part in the growth is a close call in some episodes")
	}
	var r0 rule
	for _, r := range rules() {
		if r.name == "oracle" {
			r0 = r
		}
	}
	n := 5 * sample()
	p := &population{seed: defaultSeed, episodes: makeEpisodes(defaultSeed, n), rules: []rule{r0}}
	p.run(nil)
	held := 0
	for i, e := range p.episodes {
		a := p.tallies[0][i]
		if a.innocents > 0 {
			t.Errorf("episode %d (%s): %d innocents", e.Index, e.Kind, a.innocents)
		}
		if !e.Crosses && (a.evicted > 0 || a.crossed) {
			t.Errorf("episode %d (%s): %d evictions, crossed %v, though nothing crosses", e.Index, e.Kind, a.evicted, a.crossed)
		}
		if e.Crosses && !a.crossed {
			held++
		}
	}
	if held == 0 {
		t.Error("it holds no threshold")
	}
}

// TestPopulation plays the first episodes against the baseline: the limits hold of them too.
func TestPopulation(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the baseline was recorded on amd64, and arithmetic may be fused elsewhere")
	}
	base, err := readBaseline(baselineFile)
	if err != nil {
		t.Fatal(err)
	}
	if len(base.tallies) != defaultEpisodes || base.seed != defaultSeed {
		t.Fatalf("the baseline has %d episodes of seed %d, want %d of %d", len(base.tallies), base.seed, defaultEpisodes, defaultSeed)
	}
	if race.Enabled {
		return
	}
	all := makeEpisodes(defaultSeed, defaultEpisodes)
	if err := base.fits(defaultSeed, all, hashEpisodes); err != nil {
		t.Fatal(err)
	}
	p := &population{seed: defaultSeed, episodes: all[:sample()], rules: slices.DeleteFunc(rules(), func(r rule) bool { return r.name != now && r.name != "oracle" })}
	p.run(nil)
	oracle := p.of("oracle")
	was, is := sum(p.episodes, base.tallies, oracle, ""), sum(p.episodes, p.of(now), oracle, "")
	for _, problem := range allowed.check(&was, &is) {
		t.Error(problem)
	}
}

// TestPart: of equal leaks each is a part, and a wobble beside a leak is none.
func TestPart(t *testing.T) {
	pod := func(name string, s shape) podSpec {
		return podSpec{Name: name, Workload: name, Kind: "ReplicaSet", Born: -1, Anon: s}
	}
	e := &episode{Capacity: 64 * gib, Seconds: 60}
	for range 20 {
		e.Pods = append(e.Pods, pod("equal", shape{Form: ramp, Base: gib, Rate: 10 * mib}))
	}
	e.Pods = append(e.Pods, pod("slow", shape{Form: ramp, Base: gib, Rate: mib}), pod("still", shape{Form: still, Base: 4 * gib}))
	w := newWorld(e)
	w.bare = true
	w.advance(20)
	for _, p := range w.pods {
		if got, want := w.part(p, 20), p.spec.Name == "equal"; got != want {
			t.Errorf("%s: a part in the growth %v, want %v", p.spec.Name, got, want)
		}
	}
}

// TestKubeletOrder: above the request first, then the lowest priority, then the most above the request.
func TestKubeletOrder(t *testing.T) {
	for _, tc := range []struct {
		name          string
		over          float64
		priority      int32
		other         float64
		otherPriority int32
		want          bool
	}{
		{"above its request before one inside of it", 1, 1000, -1, 0, true},
		{"inside of its request after one above it", -1, 0, 1, 1000, false},
		{"the lower priority", 1, 0, 100, 1000, true},
		{"the higher priority", 100, 1000, 1, 0, false},
		{"more above its request", 100, 0, 1, 0, true},
		{"less far inside of its request", -1, 0, -100, 0, true},
	} {
		if got := kubeletPrefers(tc.over, tc.priority, tc.other, tc.otherPriority); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

// TestShapes: what an amount does over time.
func TestShapes(t *testing.T) {
	for _, tc := range []struct {
		name  string
		s     shape
		at    float64
		fresh bool
		want  float64
	}{
		{"before the growth", shape{Form: ramp, Base: 5, Rate: 2, Start: 1}, 0.5, false, 5},
		{"grows", shape{Form: ramp, Base: 5, Rate: 2, Start: 1}, 3, false, 9},
		{"stops", shape{Form: ramp, Base: 5, Rate: 2, Most: 3}, 10, false, 8},
		{"accelerates", shape{Form: faster, Rate: 2, Double: 4}, 4, false, 12},
		{"stands between steps", shape{Form: steps, Height: 10, Every: 5}, 4, false, 10},
		{"a burst holds", shape{Form: burst, Rate: 10, Height: 20, Hold: 5, Fall: 1}, 6, false, 20},
		{"a burst is given back", shape{Form: burst, Base: 1, Rate: 10, Height: 20, Hold: 5, Fall: 1}, 9, false, 1},
		{"not started", shape{Form: still, Base: 7, Fresh: 2}, -1, true, 0},
		{"starting", shape{Form: still, Base: 8, Fresh: 2}, 1, true, 4},
	} {
		if got := tc.s.at(tc.at, tc.fresh); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// TestLimits: each limit is broken by what it names, and by nothing better than the baseline.
func TestLimits(t *testing.T) {
	base := sums{episodes: [2]int{500, 500}, quiet: [2]int{20, 20}, needless: [2]int{10, 10}, crossings: 50, tally: tally{innocents: 8, early: 5, victims: 20, polite: 15}}
	if bad := (&limits{early: 1, innocents: 1, needlessKnown: 1, needlessUnknown: 1}).check(&base, &base); len(bad) != 0 {
		t.Errorf("the baseline breaks its own limits: %v", bad)
	}
	for name, worsen := range map[string]func(s *sums){
		"early": func(s *sums) { s.early++ }, "innocents": func(s *sums) { s.innocents++ }, "known": func(s *sums) { s.needless[1]++ },
		"unknown": func(s *sums) { s.needless[0]++ }, "crossed": func(s *sums) { s.crossings++ }, "polite": func(s *sums) { s.polite-- },
	} {
		s := base
		if worsen(&s); len((&limits{early: 1, innocents: 1, needlessKnown: 1, needlessUnknown: 1}).check(&base, &s)) != 1 {
			t.Errorf("%s: %v", name, (&limits{early: 1, innocents: 1, needlessKnown: 1, needlessUnknown: 1}).check(&base, &s))
		}
	}
}
