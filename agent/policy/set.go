package policy

import (
	"cmp"
	"math"
	"slices"
)

// choose fills Set: the fewest pods that meet the need together, among equally many those whose memory comes back in
// time, then those that rank best.
//   - While pods grow, the set is made of such pods only, and the leader of the growth is in it: without it the others'
//     memory would only buy time. When they cannot meet the need within the round, the best ranked go, and Missing says
//     what is left; the next decision sees what they gave.
//   - Where none that grows can go, and one without a part may (see noBystander), it is the one whose eviction does the least
//     harm.
//   - On a full node where nothing grows, and the config asks for evictions all the same, it is the best ranked pod that
//     meets the need alone, or several that do together.
func (d *Decision) choose(in *Input) {
	limit := in.places()
	if in.Maintenance {
		d.chooseNext(in)
		return
	}
	if len(d.Victims) == 0 {
		if in.CacheOwner == "" && in.evictsFlat() {
			d.chooseFlat(in, limit)
		}
		return
	}
	var pool []int
	leader := -1
	for _, i := range d.Victims {
		if d.Pods[i].Grower {
			pool = append(pool, i)
			if d.Pods[i].Leader {
				leader = i
			}
		}
	}
	if len(pool) == 0 && in.Met && in.CacheOwner == "" {
		d.Set = []int{slices.MinFunc(d.Victims, func(a, b int) int { return cmp.Or(harm(&d.Pods[a], &d.Pods[b]), cmp.Compare(a, b)) })}
		d.settle(in)
		return
	}
	if len(pool) == 0 {
		pool = d.Victims // each of them is enough alone
	}
	s := search{need: &in.Need, pods: d.Pods, leader: leader}
	d.Set = s.smallest(pool, 1, limit)
	if d.Set == nil {
		d.Set = firstRanked(pool, leader, limit)
	}
	d.settle(in)
}

// chooseFlat looks for several innocent pods that end a shortage in which nothing grows.
func (d *Decision) chooseFlat(in *Input, limit int) {
	if in.Need.ByETA && !(in.Need.Slope <= 0) || !(in.NodeGrowth <= 0) {
		return
	}
	var pool []int
	for i := range d.Pods {
		c := &d.Pods[i]
		if c.Reading.Fresh && c.Reading.Growth > 0 {
			return // growth hidden behind another pod's shrinking would fill their memory again
		}
		if c.Rank > 0 && c.Excluded == whyNoEnd && c.Refused == "" && c.spared(in) == "" && releases(in, c) {
			pool = append(pool, i)
		}
	}
	s := search{need: &in.Need, pods: d.Pods, leader: -1}
	if d.Set = s.smallest(pool, 2, limit); d.Set == nil {
		return
	}
	for _, i := range d.Set {
		d.Pods[i].Excluded = ""
	}
	d.Victims = slices.Clone(d.Set)
	d.settle(in)
}

// firstRanked returns the leader and the best ranked others.
func firstRanked(pool []int, leader, limit int) []int {
	out := slices.Clone(pool[:min(limit, len(pool))])
	if leader >= 0 && !slices.Contains(out, leader) {
		out[len(out)-1] = leader
	}
	return out
}

// settle says what the set achieves.
func (d *Decision) settle(in *Input) {
	release, growth := d.gain()
	d.Covered, d.Missing = in.Need.Covers(release, growth), in.Need.Missing(release, growth)
	for _, i := range d.Set {
		d.Lead = max(d.Lead, d.Pods[i].Lead)
	}
	d.Late = in.Need.late(d.Lead.Seconds())
}

// gain is what the set gives back and stops.
func (d *Decision) gain() (release uint64, growth float64) {
	for _, i := range d.Set {
		release = plus(release, d.Pods[i].Reading.Release)
		growth += d.Pods[i].Reading.Growth
	}
	return release, growth
}

// eta returns the seconds until the margin is used up at the present slope.
func (n *Need) eta() float64 {
	switch {
	case !n.ByETA || !(n.Slope > 0):
		return math.Inf(1)
	case n.Margin <= 0:
		return 0
	}
	return float64(n.Margin) / n.Slope
}

func (n *Need) late(lead float64) bool { return lead > n.eta() }

// search looks for the best set of one size after the other.
type search struct {
	need   *Need
	pods   []Candidate
	leader int // must be in the set; -1: nobody must

	pick, best [MaxRound]int
	found      bool
	late       bool // of the best
	ranks      int  // sum of the ranks of the best
}

// smallest returns the best set of the smallest size from least to most that meets the need, in the order of the ranks,
// nil when there is none. Of more than searchWidth pods only those are combined that promise most.
func (s *search) smallest(pool []int, least, most int) []int {
	wide := len(pool) > searchWidth
	for size := least; size <= min(most, len(pool)); size++ {
		if size > 1 && wide {
			pool, wide = s.narrow(pool), false
		}
		k, release, growth, rest := 0, uint64(0), 0.0, pool
		if s.leader >= 0 {
			r := &s.pods[s.leader].Reading
			k, release, growth = 1, r.Release, r.Growth
			s.pick[0] = s.leader
			rest = slices.DeleteFunc(slices.Clone(pool), func(i int) bool { return i == s.leader })
		}
		s.extend(rest, k, size, release, growth)
		if s.found {
			out := slices.Clone(s.best[:size])
			slices.Sort(out)
			return out
		}
	}
	return nil
}

// extend tries every way to fill the places from k on out of rest.
func (s *search) extend(rest []int, k, size int, release uint64, growth float64) {
	if k == size {
		if s.need.Covers(release, growth) {
			s.keep(size)
		}
		return
	}
	for at := 0; at+size-k <= len(rest); at++ {
		i := rest[at]
		s.pick[k] = i
		r := &s.pods[i].Reading
		s.extend(rest[at+1:], k+1, size, plus(release, r.Release), growth+r.Growth)
	}
}

// keep remembers a set that is better than the best so far. Sets come in the order of their ranks: of two alike the
// first stays.
func (s *search) keep(size int) {
	ranks, lead := 0, 0.0
	for _, i := range s.pick[:size] {
		ranks += s.pods[i].Rank
		lead = max(lead, s.pods[i].Lead.Seconds())
	}
	late := s.need.late(lead)
	if s.found && (late && !s.late || late == s.late && ranks >= s.ranks) {
		return
	}
	s.best, s.found, s.late, s.ranks = s.pick, true, late, ranks
}

// Of a larger pool, the first by rank and the strongest by each measure are combined: at most 25 pods with 68,405 sets of up to
// five, which take a fraction of a millisecond.
const (
	searchWidth = 24
	searchFirst = 9
	searchBy    = 5
)

// narrow keeps the order of the ranks. A need of bytes is met by the largest if by any, one of time by those that give
// most within its horizon, or whose growth or memory does it.
func (s *search) narrow(pool []int) []int {
	keep := slices.Clone(pool[:searchFirst])
	horizon := s.need.Horizon.Seconds()
	for _, value := range []func(*Reading) float64{
		func(r *Reading) float64 { return float64(r.Release) },
		func(r *Reading) float64 { return r.Growth },
		func(r *Reading) float64 { return float64(r.Release) + float64(horizon*r.Growth) },
	} {
		by := slices.Clone(pool)
		slices.SortStableFunc(by, func(a, b int) int {
			return cmp.Compare(value(&s.pods[b].Reading), value(&s.pods[a].Reading))
		})
		keep = append(keep, by[:searchBy]...)
	}
	if s.leader >= 0 {
		keep = append(keep, s.leader)
	}
	slices.Sort(keep)
	return slices.Compact(keep)
}
