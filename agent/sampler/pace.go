package sampler

import (
	"math"
	"time"

	"spillway/cgroup"
)

const (
	// samplesLeft is how many node samples must fit before the headroom is gone at the worst fill rate: MinPoints of
	// package pressure to see a trend, and as many again to decide and act.
	samplesLeft = 10
	// unknownPace is the sleep while nobody has told the headroom.
	unknownPace = 100 * time.Millisecond
	// headroomAge is how long a headroom counts: a loop that tells nothing any more leaves it unknown, not large.
	headroomAge = 3 * time.Second
	// holdFast is how long the fastest pace is kept after a wake-up: longer than the window of a PSI trigger, so that
	// pressure that goes on wakes again before the pace falls back.
	holdFast = 3 * time.Second
	// A trend takes five samples, at a slow pace so many seconds. So growth that would use up the headroom within
	// growthHorizon, longer than any ETA that makes an alert, wakes by itself. Only a sample that came at a slow pace can
	// say so: between near ones the noise is as large as that.
	growthHorizon = 2 * time.Minute
	growthSpan    = 150 * time.Millisecond
)

// UnknownHeadroom is the headroom that nobody can tell. It has the value of pressure.Unknown.
const UnknownHeadroom int64 = math.MinInt64

// pace returns the sleep till the next node sample, so that samplesLeft of them fit before headroom bytes are used up at
// worst bytes per second. It never leaves [fastest, slowest]. An unknown headroom gives unknownPace, no headroom or a
// rate that is no number gives fastest.
func pace(headroom int64, worst float64, fastest, slowest time.Duration) time.Duration {
	if headroom == UnknownHeadroom {
		return min(max(unknownPace, fastest), slowest)
	}
	if headroom <= 0 || !(worst >= 0) || math.IsInf(worst, 1) {
		return fastest
	}
	seconds := float64(headroom) / worst / samplesLeft // +Inf for a rate of 0
	if seconds >= slowest.Seconds() {
		return slowest
	}
	return max(time.Duration(seconds*float64(time.Second)), fastest)
}

// growing reports whether memory went, from one sample to the next, at a rate that uses up the headroom soon.
func growing(from, to *NodeSample, headroom int64) bool {
	span := to.At - from.At
	if span < growthSpan || headroom == UnknownHeadroom {
		return false
	}
	least := float64(max(headroom, 0)) * span.Seconds() / growthHorizon.Seconds()
	more := func(a, b cgroup.Amount) bool {
		x, ok1 := a.Bytes()
		y, ok2 := b.Bytes()
		return ok1 && ok2 && y > x && float64(y-x) > least
	}
	return more(from.RootWorkingSet, to.RootWorkingSet) || more(to.MemAvailable, from.MemAvailable)
}

// SetHeadroom tells how many bytes are left till the nearest threshold; below 0 when it was crossed, UnknownHeadroom when
// nobody knows. It counts for 3 s. Any goroutine may call it, after each sample at best.
func (s *Sampler) SetHeadroom(bytes int64) {
	now := s.clock()
	s.headroom.Store(bytes)
	s.headroomAt.Store(int64(now)) // after it: a reader takes it for older than it is, if anything
	if s.choose(now) < time.Duration(s.pace.Load()) {
		s.nudge()
	}
}

// Wake makes sampling fast at once, and keeps it so for 3 s. Any goroutine may call it, as often as it likes: from a PSI
// trigger, a memory event, or a level above calm.
func (s *Sampler) Wake() {
	now := s.clock()
	s.woken.Store(int64(now) + 1)
	if time.Duration(s.pace.Load()) > s.fastest {
		s.nudge()
	}
}

func (s *Sampler) nudge() {
	select {
	case s.replan <- struct{}{}:
	default: // Run has not seen the last one yet, and will see this with it
	}
}

// awake reports whether a wake-up holds the pace fast.
func (s *Sampler) awake(now time.Duration) bool {
	woken := s.woken.Load()
	return woken != 0 && now-time.Duration(woken-1) < holdFast
}

// knownHeadroom is what was told, as long as it counts.
func (s *Sampler) knownHeadroom(now time.Duration) int64 {
	at := time.Duration(s.headroomAt.Load())
	headroom := s.headroom.Load()
	if now-at >= headroomAge {
		return UnknownHeadroom
	}
	return headroom
}

// choose returns the sleep that is right now. It stores nothing: any goroutine may ask.
func (s *Sampler) choose(now time.Duration) time.Duration {
	if s.awake(now) {
		return s.fastest
	}
	return pace(s.knownHeadroom(now), math.Float64frombits(s.worst.Load()), s.fastest, s.slowest)
}

// plan chooses the sleep and publishes it.
func (s *Sampler) plan(now time.Duration) time.Duration {
	d := s.choose(now)
	s.pace.Store(int64(d))
	// Wake and SetHeadroom store what they know and then load the pace; here it is the other way round. As all of these
	// atomics are in one order, either the pace is seen there, and they nudge, or what they know is seen here.
	if again := s.choose(now); again < d {
		d = again
		s.pace.Store(int64(d))
	}
	held := s.awake(now)
	if held && !s.held {
		s.wakes.Add(1)
	}
	s.held = held
	return d
}

// overdue is how much later than planned a sample may come before its predecessor is stale.
const overdue = 400 * time.Millisecond

// Freshness says how old the newest readings may be now; older ones are unknown. A reading is fresh until the sweep that
// should have replaced it is overdue by 400 ms. So the bound follows the pace: 0.5 s at 100 ms, 1.4 s at 1 s. A wake-up
// moves that sweep to the moment of the wake-up, also when the sampler hangs and has not seen it: from then on the last
// calm reading, whatever its age, has 400 ms left. It is neither stale at once nor fresh for as long as in calm.
type Freshness struct {
	Node, Pods, Containers, Slow time.Duration
}

// Fresh returns the present bounds. Before the first sweep there is nothing to be fresh.
func (s *Sampler) Fresh() Freshness {
	last := time.Duration(s.lastSample.Load())
	planned := time.Duration(s.planned.Load())
	if woken := time.Duration(s.woken.Load() - 1); woken > last {
		planned = min(planned, woken)
	}
	return Freshness{
		Node:       max(planned, last) - last + overdue,
		Pods:       s.podTier.fresh(planned, s.fastest),
		Containers: s.childTier.fresh(planned, s.fastest),
		Slow:       s.slowTier.fresh(planned, s.fastest),
	}
}
