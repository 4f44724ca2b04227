package sampler

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"spillway/cgroup"
)

// clocked is a sampler in a bubble, where time passes only while all sleep: the readings are of real files and take none.
type clocked struct {
	t *testing.T
	*Sampler
	begin  time.Time
	offset atomic.Int64 // by which the sampler's clock has jumped: as if the process had hung
}

// inBubble runs f beside Run.
func inBubble(t *testing.T, opts Options, f func(c *clocked)) {
	n := newNode(t)
	synctest.Test(t, func(t *testing.T) {
		c := &clocked{t: t, begin: time.Now()}
		opts.Clock = func() time.Duration { return time.Hour + time.Since(c.begin) + time.Duration(c.offset.Load()) }
		c.Sampler = newSampler(t, n, opts)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		f(c)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if h := c.Health(); c.offset.Load() != 0 {
			return
		} else if h.Late != 0 || h.WorstLate != 0 || h.Errors != 0 {
			t.Errorf("nothing was late: %+v", h)
		}
	})
	goleak.VerifyNone(t)
}

// pass lets time pass and returns how many sweeps were made.
func (c *clocked) pass(d time.Duration) int {
	before := c.Health().Sweeps
	time.Sleep(d) // of the bubble
	synctest.Wait()
	return int(c.Health().Sweeps - before)
}

func (c *clocked) want(what string, got, want int) {
	c.t.Helper()
	if got != want {
		c.t.Errorf("%s: %d sweeps, want %d (pace %v)", what, got, want, c.Health().Pace)
	}
}

func TestPaceFollowsTheHeadroom(t *testing.T) {
	inBubble(t, Options{}, func(c *clocked) {
		rate := c.Health().WorstRate
		for _, step := range []struct {
			name   string
			bytes  float64
			sweeps int // within 2 s
		}{
			{"much", rate * 100, 2},
			{"for 100 ms", rate, 20},
			{"for 50 ms", rate / 2, 40},
			{"none", 0, 100},
			{"crossed", -1e9, 100},
			{"much again", rate * 100, 2},
		} {
			c.SetHeadroom(int64(step.bytes))
			c.pass(time.Second) // into the new pace
			c.SetHeadroom(int64(step.bytes))
			// The learned rate decays by some millionths.
			if got := c.pass(2 * time.Second); got < step.sweeps-1 || got > step.sweeps+1 {
				t.Errorf("headroom %s: %d sweeps in 2 s, want %d", step.name, got, step.sweeps)
			}
		}
	})
}

func TestUnknownHeadroom(t *testing.T) {
	inBubble(t, Options{}, func(c *clocked) {
		c.want("never told", c.pass(time.Second), 10)
		c.SetHeadroom(1 << 50)
		c.pass(100 * time.Millisecond)
		if got := c.pass(2 * time.Second); got != 2 {
			t.Errorf("told: %d sweeps in 2 s", got)
		}
		c.pass(2 * time.Second) // 3 s after it was told
		c.want("told long ago", c.pass(time.Second), 10)
		c.SetHeadroom(UnknownHeadroom)
		c.want("told to be unknown", c.pass(time.Second), 10)
	})
}

// A headroom that shrinks ends a sleep that has become too long.
func TestLessHeadroomEndsTheSleep(t *testing.T) {
	inBubble(t, Options{}, func(c *clocked) {
		c.SetHeadroom(1 << 50)
		c.pass(time.Second) // the next sweep is up to 1 s away
		c.SetHeadroom(1 << 50)
		c.pass(time.Second)
		before := c.Health()
		c.pass(500 * time.Millisecond)
		if h := c.Health(); h.Pace != time.Second || h.Sweeps > before.Sweeps+1 {
			t.Fatalf("not calm: %+v", h)
		}
		c.SetHeadroom(0)
		c.want("at once", c.pass(0), 1)
		c.want("no headroom", c.pass(time.Second), 50)
		if h := c.Health(); h.Wakes != 0 {
			t.Errorf("%d wake-ups", h.Wakes)
		}
	})
}

func TestWake(t *testing.T) {
	inBubble(t, Options{}, func(c *clocked) {
		calm := func() {
			for range 5 {
				c.SetHeadroom(1 << 50)
				c.pass(time.Second)
			}
			c.SetHeadroom(1 << 50)
			c.want("calm", c.pass(2*time.Second), 2)
			c.SetHeadroom(1 << 50)
		}
		calm()
		c.pass(300 * time.Millisecond)
		c.Wake()
		c.want("a wake-up in the midst of a sleep", c.pass(0), 1)
		c.want("after it", c.pass(200*time.Millisecond), 10)
		c.Wake()
		c.want("a wake-up while it is fast", c.pass(0), 0)
		c.want("held", c.pass(2*time.Second), 100)
		c.SetHeadroom(1 << 50)
		c.want("held on", c.pass(900*time.Millisecond), 45)
		if h := c.Health(); h.Wakes != 1 || h.Pace != 20*time.Millisecond {
			t.Errorf("%+v, want one wake-up that holds", h)
		}
		if got := c.pass(time.Second); got > 8 {
			t.Errorf("3 s after the last wake-up: %d sweeps in a second", got)
		}
		calm()
		// Many at once, each before Run has seen any of the others.
		for range 1000 {
			c.Wake()
		}
		c.want("a thousand wake-ups", c.pass(0), 1)
		if h := c.Health(); h.Wakes != 2 {
			t.Errorf("%d wake-ups, want 2", h.Wakes)
		}
	})
}

// Real growth of the root between two slow samples wakes by itself.
func TestGrowthWakes(t *testing.T) {
	n := newNode(t)
	n.mkdir("pod")
	child := n.child(t, "pod")
	now := time.Hour
	s := newSampler(t, n, Options{Clock: func() time.Duration { return now }})
	defer s.closeAll()
	sweep := func() time.Duration {
		now += time.Second
		s.SetHeadroom(4 << 30)
		// calm by its headroom
		s.rate = fillRate{top: 1, available: reading{value: cgroup.Absent}, workingSet: reading{value: cgroup.Absent}}
		swept(s)
		return s.plan(now)
	}
	for range 3 {
		if got, h := sweep(), s.Health(); got != slow || h.Wakes != 0 {
			t.Errorf("before: pace %v, %+v", got, h)
		}
	}
	child.allocate(48)
	if got, h := sweep(), s.Health(); got != fast || h.Wakes != 1 {
		t.Errorf("48 MiB of 4 GiB within 1 s: pace %v, %+v", got, h)
	}
}

// A wake-up right after a sweep waits for the fastest pace: the node is not read twice at once.
func TestWakeAfterASweep(t *testing.T) {
	inBubble(t, Options{}, func(c *clocked) {
		c.SetHeadroom(1 << 50)
		before := c.Health().Sweeps
		for c.Health().Sweeps == before {
			c.pass(time.Millisecond)
		}
		c.pass(4 * time.Millisecond)
		c.Wake()
		c.want("5 ms after a sweep", c.pass(14*time.Millisecond), 0)
		c.want("20 ms after a sweep", c.pass(2*time.Millisecond), 1)
	})
}

// A hang is measured against the plan at any pace, and is over with the next sweep in time.
func TestLateAtAnyPace(t *testing.T) {
	for _, tc := range []struct {
		name     string
		headroom int64
		pace     time.Duration
		hang     time.Duration
		late     uint64
	}{
		{"calm", 1 << 50, time.Second, 700 * time.Millisecond, 1},
		{"calm, not worth counting", 1 << 50, time.Second, 40 * time.Millisecond, 0},
		{"fast", 0, 20 * time.Millisecond, 60 * time.Millisecond, 1},
		{"fast, for long", 0, 20 * time.Millisecond, 5 * time.Second, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, Options{}, func(c *clocked) {
				c.SetHeadroom(tc.headroom)
				c.pass(1500 * time.Millisecond)
				c.SetHeadroom(tc.headroom)
				before := c.Health()
				if before.Pace != tc.pace || before.Late != 0 {
					t.Fatalf("%+v", before)
				}
				c.offset.Store(int64(tc.hang))
				for c.Health().Sweeps == before.Sweeps {
					c.pass(time.Millisecond)
				}
				h := c.Health()
				if h.Late != tc.late || h.LastLate != tc.hang || h.WorstLate != tc.hang {
					t.Errorf("hung for %v: %+v", tc.hang, h)
				}
				c.SetHeadroom(tc.headroom)
				if got := c.pass(tc.pace); got != 1 {
					t.Errorf("%d sweeps after it, want 1 in %v", got, tc.pace)
				}
				if h = c.Health(); h.Late != tc.late || h.LastLate != 0 || h.WorstLate != tc.hang {
					t.Errorf("after it: %+v", h)
				}
			})
		})
	}
}

func TestTiersFollowThePace(t *testing.T) {
	inBubble(t, Options{}, func(c *clocked) {
		count := func(name string, least, most [4]int) {
			t.Helper()
			a := c.Health()
			c.pass(2 * time.Second)
			b := c.Health()
			got := [4]int{int(b.Sweeps - a.Sweeps), int(b.PodSweeps - a.PodSweeps), int(b.ChildSweeps - a.ChildSweeps), int(b.SlowSweeps - a.SlowSweeps)}
			for i := range got {
				if got[i] < least[i] || got[i] > most[i] {
					t.Errorf("%s: %v sweeps of node, pods, containers, slow, want %v to %v", name, got, least, most)
					return
				}
			}
		}
		c.Wake()
		count("fast", [4]int{100, 18, 1, 2}, [4]int{100, 21, 2, 3})
		c.pass(5 * time.Second)
		c.SetHeadroom(1 << 50)
		c.pass(time.Second)
		c.SetHeadroom(1 << 50)
		count("calm", [4]int{2, 2, 1, 2}, [4]int{2, 2, 1, 2})
		got, _ := c.Seconds(make([]NodeSample, 100), nil)
		if len(got) < 9 || len(got) > 11 {
			t.Errorf("%d samples of seconds after 10 s", len(got))
		}
		for i := 1; i < len(got); i++ {
			if gap := got[i].At - got[i-1].At; gap < 900*time.Millisecond || gap > 1200*time.Millisecond {
				t.Errorf("%v between samples of seconds", gap)
			}
		}
		c.pass(3 * time.Minute)
		if points, _ := c.History(make([]HistoryPoint, 100), nil); len(points) != 3 || points[0].PeakWorkingSet == cgroup.Absent || points[0].HeldFloor == 0 {
			t.Errorf("history of 3 minutes: %+v", points)
		}
	})
}

// The bounds of freshness under Run, and the rule for a wake-up.
func TestFresh(t *testing.T) {
	inBubble(t, Options{}, func(c *clocked) {
		bounds := func(name string, node, pods, slow, containers time.Duration) {
			t.Helper()
			f := c.Fresh()
			for _, x := range []struct{ got, want time.Duration }{{f.Node, node}, {f.Pods, pods}, {f.Containers, containers}, {f.Slow, slow}} {
				if x.got < x.want-50*time.Millisecond || x.got > x.want+50*time.Millisecond {
					t.Errorf("%s: %+v, want node %v, pods %v, slow %v, containers %v", name, f, node, pods, slow, containers)
					return
				}
			}
		}
		const ms = time.Millisecond
		bounds("100 ms", 500*ms, 520*ms, 1420*ms, 2420*ms)
		for range 4 {
			c.SetHeadroom(1 << 50)
			c.pass(time.Second)
		}
		bounds("calm", 1400*ms, 1400*ms, 1420*ms, 2420*ms)
		c.pass(600 * ms) // somewhere within a sleep of 1 s
		age := c.Now() - c.Health().LastSample
		// The wake-up is there, and Run hangs: it has not seen it. It must not matter.
		c.woken.Store(int64(c.Now()) + 1)
		bounds("woken, not seen", age+400*ms, max(age, 120*ms)+400*ms, max(age, 1020*ms)+400*ms, 2420*ms)
		if f := c.Fresh(); age > f.Node {
			t.Errorf("a wake-up makes a reading of %v ago stale at once: %+v", age, f)
		}
		c.Wake()
		c.pass(0)
		bounds("woken", 420*ms, 520*ms, 1420*ms, 2420*ms)
	})
}

// A hanging sampler: what it read last becomes stale, and a wake-up makes it stale sooner.
func TestFreshEndsWithoutSweeps(t *testing.T) {
	s := &Sampler{fastest: fast, slowest: slow}
	s.podTier.every = podsEvery
	const last = time.Hour
	s.lastSample.Store(int64(last))
	s.planned.Store(int64(last + time.Second))
	s.podTier.last.Store(int64(last))
	for _, tc := range []struct {
		name       string
		woken      time.Duration // after the sample; below 0: before it
		never      bool
		node, pods time.Duration
	}{
		{"never woken", 0, true, 1400 * time.Millisecond, 1400 * time.Millisecond},
		{"woken before the sample", -time.Second, false, 1400 * time.Millisecond, 1400 * time.Millisecond},
		{"woken at once", time.Microsecond, false, 400*time.Millisecond + time.Microsecond, 520 * time.Millisecond},
		{"woken in the midst", 500 * time.Millisecond, false, 900 * time.Millisecond, 900 * time.Millisecond},
		{"woken when it was overdue already", 5 * time.Second, false, 1400 * time.Millisecond, 1400 * time.Millisecond},
	} {
		s.woken.Store(0)
		if !tc.never {
			s.woken.Store(int64(last+tc.woken) + 1)
		}
		if f := s.Fresh(); f.Node != tc.node || f.Pods != tc.pods {
			t.Errorf("%s: %+v, want node %v, pods %v", tc.name, f, tc.node, tc.pods)
		}
	}
}
