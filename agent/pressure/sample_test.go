package pressure

import "testing"

func TestThresholdRead(t *testing.T) {
	full := Sample{Capacity: 8000, RootWorkingSet: 5000, PodsWorkingSet: 3000, PodsLimit: 4000, MemAvailable: 2500}
	with := func(change func(*Sample)) Sample {
		s := full
		change(&s)
		return s
	}
	for _, tc := range []struct {
		name                     string
		t                        Threshold
		s                        Sample
		available, limit, margin Bytes
	}{
		{"memory.available in bytes", Threshold{Signal: MemoryAvailable, Bytes: 100}, full, 3000, 100, 2900},
		{"memory.available in percent of capacity", Threshold{Signal: MemoryAvailable, Percent: 10}, full, 3000, 800, 2200},
		{"percent wins over bytes", Threshold{Signal: MemoryAvailable, Bytes: 1, Percent: 5}, full, 3000, 400, 2600},
		{"percent rounds down", Threshold{Signal: MemoryAvailable, Percent: 0.33}, full, 3000, 26, 2974},
		{"below the threshold", Threshold{Signal: MemoryAvailable, Bytes: 3500}, full, 3000, 3500, -500},
		{"capacity unknown", Threshold{Signal: MemoryAvailable, Bytes: 100}, with(func(s *Sample) { s.Capacity = Unknown }), Unknown, 100, Unknown},
		{"percent of an unknown capacity", Threshold{Signal: MemoryAvailable, Percent: 5}, with(func(s *Sample) { s.Capacity = Unknown }), Unknown, Unknown, Unknown},
		{"working set unknown", Threshold{Signal: MemoryAvailable, Bytes: 100}, with(func(s *Sample) { s.RootWorkingSet = Unknown }), Unknown, 100, Unknown},
		{"an unknown working set of the pods does not matter to the node", Threshold{Signal: MemoryAvailable, Bytes: 100}, with(func(s *Sample) { s.PodsWorkingSet = Unknown }), 3000, 100, 2900},
		{"allocatable in bytes", Threshold{Signal: AllocatableAvailable, Bytes: 100}, full, 1000, 100, 900},
		{"allocatable in percent of the limit of kubepods", Threshold{Signal: AllocatableAvailable, Percent: 10}, full, 1000, 400, 600},
		{"allocatable without a limit", Threshold{Signal: AllocatableAvailable, Bytes: 100}, with(func(s *Sample) { s.PodsLimit = Unknown }), Unknown, 100, Unknown},
		{"allocatable in percent without a limit", Threshold{Signal: AllocatableAvailable, Percent: 5}, with(func(s *Sample) { s.PodsLimit = Unknown }), Unknown, Unknown, Unknown},
		{"allocatable, pods unknown", Threshold{Signal: AllocatableAvailable, Bytes: 100}, with(func(s *Sample) { s.PodsWorkingSet = Unknown }), Unknown, 100, Unknown},
		{"pods over their limit", Threshold{Signal: AllocatableAvailable, Bytes: 100}, with(func(s *Sample) { s.PodsWorkingSet = 4100 }), -100, 100, -200},
		{"MemAvailable", Threshold{Signal: MemAvailable, Bytes: 100}, full, 2500, 100, 2400},
		{"MemAvailable unknown", Threshold{Signal: MemAvailable, Bytes: 100}, with(func(s *Sample) { s.MemAvailable = Unknown }), Unknown, 100, Unknown},
		{"MemAvailable in percent", Threshold{Signal: MemAvailable, Percent: 1}, full, 2500, 80, 2420},
		{"a signal that nobody knows", Threshold{Signal: "nodefs.available", Bytes: 100}, full, Unknown, 100, Unknown},
		{"real zero is not unknown", Threshold{Signal: MemAvailable, Bytes: 0}, with(func(s *Sample) { s.MemAvailable = 0 }), 0, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := tc.t.Read(&tc.s)
			if got.Available != tc.available || got.Limit != tc.limit || got.Margin != tc.margin {
				t.Errorf("available %d, limit %d, margin %d; want %d, %d, %d", got.Available, got.Limit, got.Margin, tc.available, tc.limit, tc.margin)
			}
			if got.Threshold != tc.t {
				t.Errorf("reading is of %+v, want %+v", got.Threshold, tc.t)
			}
		})
	}
}

func TestGuard(t *testing.T) {
	for _, tc := range []struct {
		name           string
		capacity, want Bytes
	}{
		{"1 GiB: 32 MiB", testGiB, 32 * testMiB},
		{"10 GiB: half a percent", 10 * testGiB, 10 * testGiB / 200},
		{"1 TiB: 256 MiB", 1024 * testGiB, 256 * testMiB},
		{"capacity unknown", Unknown, 32 * testMiB},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := Guard(tc.capacity)
			if g.Bytes != tc.want || !g.Hard || g.Signal != MemAvailable || g.Percent != 0 {
				t.Errorf("got %+v, want a hard threshold of MemAvailable at %d", g, tc.want)
			}
		})
	}
}

func TestSmallestHardMargin(t *testing.T) {
	s := Sample{Capacity: 1000, RootWorkingSet: 400, PodsWorkingSet: 300, PodsLimit: 500, MemAvailable: 550}
	node, pods, guard := Threshold{Signal: MemoryAvailable, Hard: true, Bytes: 10}, Threshold{Signal: AllocatableAvailable, Hard: true, Bytes: 10}, Threshold{Signal: MemAvailable, Hard: true, Bytes: 10}
	soft := Threshold{Signal: MemoryAvailable, Bytes: 599}
	noPods := s
	noPods.PodsLimit = Unknown
	nothing := Sample{Capacity: Unknown, RootWorkingSet: Unknown, PodsWorkingSet: Unknown, PodsLimit: Unknown, MemAvailable: Unknown}
	for _, tc := range []struct {
		name   string
		s      Sample
		ts     []Threshold
		want   Signal
		margin Bytes
		ok     bool
	}{
		{"the nearest of three", s, []Threshold{node, pods, guard}, AllocatableAvailable, 190, true},
		{"order does not matter", s, []Threshold{pods, guard, node}, AllocatableAvailable, 190, true},
		{"unreadable ones are passed over", noPods, []Threshold{pods, node, guard}, MemAvailable, 540, true},
		{"soft ones do not count", s, []Threshold{soft, node}, MemoryAvailable, 590, true},
		{"only soft", s, []Threshold{soft}, "", 0, false},
		{"none", s, nil, "", 0, false},
		{"nothing readable", nothing, []Threshold{node, pods, guard}, "", 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, ok := smallestHardMargin(&tc.s, tc.ts)
			if ok != tc.ok || (ok && (r.Signal != tc.want || r.Margin != tc.margin)) {
				t.Errorf("got %s %d %v, want %s %d %v", r.Signal, r.Margin, ok, tc.want, tc.margin, tc.ok)
			}
		})
	}
}
