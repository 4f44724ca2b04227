package policy

import (
	"math"
	"strconv"
	"strings"
	"testing"
)

// cached is a pod that holds page cache: active and inactive in MiB, growth of the active part in MiB/s.
func cached(name string, active, inactive uint64, growth float64) Candidate {
	const mib = 1 << 20
	return Candidate{Pod: &Pod{Namespace: "shop", Name: name, UID: name}, Reading: Reading{Fresh: true,
		Usage: (active + inactive + 20) * mib, WorkingSet: (active + 20) * mib, ActiveFile: active * mib, CacheGrowth: growth * mib}}
}

func TestPlanReclaim(t *testing.T) {
	const mib = 1 << 20
	with := func(c Candidate, change func(*Candidate)) Candidate {
		change(&c)
		return c
	}
	far := CacheNeed{Bytes: 300 * mib, Margin: 800 * mib, Rate: 100 * mib}
	for _, tc := range []struct {
		name   string
		need   CacheNeed
		pods   []Candidate
		state  string
		takes  string // name:MiB, in order
		wait   int
		reason string
	}{
		{"no need", CacheNeed{Margin: 800 * mib}, []Candidate{cached("a", 900, 0, 50)}, CacheNoNeed, "", 0, ""},
		{"nothing is known", CacheNeed{Margin: math.MaxInt64}, []Candidate{with(cached("a", 900, 900, 0), func(c *Candidate) { c.Reclaimed = true })}, CacheNoNeed, "", 0, ""},
		{"the one that grows, not the one that holds more", far, []Candidate{cached("large", 2000, 0, 0), cached("reader", 400, 0, 80)}, CacheReclaim, "reader:300", 0, "1 of 1 pods"},
		{"the fastest first, the next for what is left", far, []Candidate{cached("slow", 400, 0, 40), cached("fast", 200, 0, 80)}, CacheReclaim, "fast:175 slow:125", 0, ""},
		{"a small part of the growth is not asked", far, []Candidate{cached("slow", 400, 0, 10), cached("fast", 200, 0, 80)}, CacheReclaim, "fast:175", 0, ""},
		{"nobody grows: those that hold most", far, []Candidate{cached("small", 90, 0, 0), cached("large", 400, 0, 0)}, CacheReclaim, "large:300", 0, ""},
		{"a little is rounded up", CacheNeed{Bytes: 5 * mib, Margin: mib, Rate: mib}, []Candidate{cached("a", 800, 0, 1)}, CacheReclaim, "a:64", 0, ""},
		{"the cache of no pod", far, []Candidate{cached("a", 31, 0, 10)}, CacheHeld, "", 0, "belongs to no pod"},
		{"stale readings are nobody's", far, []Candidate{with(cached("a", 900, 0, 10), func(c *Candidate) { c.Reading.Fresh = false })}, CacheHeld, "", 0, ""},
		{"a growth that is no number", far, []Candidate{with(cached("a", 900, 0, 0), func(c *Candidate) { c.Reading.CacheGrowth = math.NaN() })}, CacheHeld, "", 0, ""},
		{"annotation", far, []Candidate{with(cached("a", 900, 0, 10), func(c *Candidate) { c.Pod.Annotations = map[string]string{AnnotationReclaim: "never"} })}, CacheHeld, "", 0, `shop/a spillway/reclaim: "never"`},
		{"blocked, the next gives", far, []Candidate{with(cached("a", 900, 0, 10), func(c *Candidate) { c.Unreclaimable = "gave nothing back" }), cached("b", 900, 0, 9)}, CacheReclaim, "b:300", 0, "shop/a gave nothing back"},
		{"protected from eviction, not from this", far, []Candidate{with(cached("a", 900, 0, 10), func(c *Candidate) {
			c.Pod.Namespace, c.Pod.Annotations = "kube-system", map[string]string{AnnotationEvict: "never"}
		})}, CacheReclaim, "a:300", 0, ""},
		{"under way", far, []Candidate{with(cached("a", 900, 0, 10), func(c *Candidate) { c.Reclaiming = true })}, CacheReclaim, "", 1, ""},
		{"under way is counted on", far, []Candidate{with(cached("a", 900, 0, 10), func(c *Candidate) { c.Reclaiming = true }), cached("b", 900, 0, 9)}, CacheReclaim, "", 1, ""},
		{"too little for the only chance in a second", CacheNeed{Bytes: 3000 * mib, Margin: 1500 * mib, Rate: 2000 * mib}, []Candidate{cached("a", 400, 0, 2000)}, CacheReclaim, "", 1, ""},
		{"all the same when it is urgent", CacheNeed{Bytes: 3000 * mib, Margin: 500 * mib, Rate: 2000 * mib, Urgent: true}, []Candidate{cached("a", 400, 0, 2000)}, CacheReclaim, "a:350", 0, ""},
		{"inactive cache that is expected back", CacheNeed{Margin: 800 * mib}, []Candidate{with(cached("a", 16, 600, 0), func(c *Candidate) { c.Reclaimed = true })}, CacheReclaim, "a:14", 0, ""},
		{"inactive cache that has room", CacheNeed{Margin: 900 * mib}, []Candidate{with(cached("a", 16, 600, 0), func(c *Candidate) { c.Reclaimed = true })}, CacheNoNeed, "", 0, ""},
		{"inactive cache of a pod that never read it again", CacheNeed{Margin: 100 * mib}, []Candidate{cached("a", 16, 600, 0)}, CacheNoNeed, "", 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := PlanReclaim(tc.pods, tc.need)
			var takes []string
			for _, k := range p.Takes {
				takes = append(takes, k.Pod.Name+":"+strconv.FormatUint(k.Bytes/mib, 10))
			}
			if got := strings.Join(takes, " "); p.State != tc.state || got != tc.takes || p.Waiting != tc.wait || !strings.Contains(p.Reason, tc.reason) {
				t.Errorf("%s, takes %q, waiting %d: %s", p.State, got, p.Waiting, p.Reason)
			}
		})
	}
}

// TestCacheOwner: whose the page cache is that cannot be reclaimed, if it is one pod's.
func TestCacheOwner(t *testing.T) {
	const mib = 1 << 20
	blocked := func(c Candidate) Candidate { c.Unreclaimable = "swap of the node"; return c }
	stale := func(c Candidate) Candidate { c.Reading.Fresh = false; return c }
	done := func(c Candidate) Candidate { c.Pod.Finished = true; return c }
	for _, tc := range []struct {
		name string
		pods []Candidate
		want string
	}{
		{"one grows", []Candidate{blocked(cached("a", 900, 0, 10)), cached("b", 2000, 0, 0)}, "a"},
		{"most of the growth", []Candidate{blocked(cached("a", 900, 0, 10)), blocked(cached("b", 2000, 0, 8))}, "a"},
		{"half of it is not most", []Candidate{blocked(cached("a", 900, 0, 10)), blocked(cached("b", 2000, 0, 10))}, ""},
		{"nobody grows, one holds most", []Candidate{blocked(cached("a", 900, 0, 0)), blocked(cached("b", 300, 0, 0))}, "a"},
		{"nobody grows, nobody holds most", []Candidate{blocked(cached("a", 900, 0, 0)), blocked(cached("b", 500, 0, 0)), blocked(cached("c", 500, 0, 0))}, ""},
		{"one that cannot be read may be it", []Candidate{blocked(cached("a", 900, 0, 10)), stale(cached("b", 1, 0, 0))}, ""},
		{"one that has ended is not", []Candidate{blocked(cached("a", 900, 0, 10)), done(stale(cached("b", 1, 0, 0)))}, "a"},
		{"another gives back", []Candidate{blocked(cached("a", 900, 0, 10)), cached("b", 900, 0, 9)}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := PlanReclaim(tc.pods, CacheNeed{Bytes: 300 * mib, Margin: 800 * mib, Rate: 100 * mib})
			got := ""
			if p.Owner != nil {
				got = p.Owner.Name
			}
			if got != tc.want {
				t.Errorf("%s of %s: %s, want %q", got, p.State, p.Reason, tc.want)
			}
		})
	}
}
