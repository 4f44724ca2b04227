package sampler

import (
	"runtime"
	"testing"
	"time"

	"spillway/agent/ring"
	"spillway/cgroup"
)

func TestHistory(t *testing.T) {
	const absent = cgroup.Absent
	type in struct {
		at       time.Duration
		ws, held cgroup.Amount
	}
	for _, tc := range []struct {
		name string
		in   []in
		want []HistoryPoint
	}{
		{"an open minute is no point", []in{{time.Second, 5, 3}}, nil},
		{"peak and floor", []in{{time.Second, 5, 3}, {2 * time.Second, 9, 2}, {59 * time.Second, 7, 8}, {time.Minute, 1, 1}}, []HistoryPoint{{59 * time.Second, 9, 2}}},
		{"zero is a reading", []in{{time.Second, 0, 0}, {time.Minute, 1, 1}}, []HistoryPoint{{time.Second, 0, 0}}},
		{"absent is none", []in{{time.Second, absent, 4}, {2 * time.Second, 6, absent}, {time.Minute, 1, 1}}, []HistoryPoint{{2 * time.Second, 6, 4}}},
		{"nothing but absent", []in{{time.Second, absent, absent}, {time.Minute, 1, 1}}, []HistoryPoint{{time.Second, absent, absent}}},
		{"minutes without a reading have no point", []in{{time.Second, 1, 1}, {10 * time.Minute, 2, 2}, {11 * time.Minute, 3, 3}}, []HistoryPoint{{time.Second, 1, 1}, {10 * time.Minute, 2, 2}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHistory()
			for _, x := range tc.in {
				h.add(x.at, x.ws, x.held)
			}
			got, _ := read(h.ring, make([]HistoryPoint, 10), nil, KeepHistory, (*HistoryPoint).decode)
			if len(got) != len(tc.want) {
				t.Fatalf("%+v, want %+v", got, tc.want)
			}
			for i := range got {
				if got[i] != tc.want[i] {
					t.Errorf("point %d: %+v, want %+v", i, got[i], tc.want[i])
				}
			}
		})
	}
}

// A day and a half leave the newest day.
func TestHistoryOfADay(t *testing.T) {
	h := newHistory()
	const minutes = 36 * 60
	for m := range minutes {
		at := time.Duration(m) * time.Minute
		h.add(at+time.Second, cgroup.Amount(m), cgroup.Amount(2*m))
		h.add(at+2*time.Second, cgroup.Amount(m), cgroup.Amount(2*m))
	}
	got, _ := read(h.ring, make([]HistoryPoint, 3000), nil, KeepHistory, (*HistoryPoint).decode)
	if len(got) != 1440 {
		t.Fatalf("%d points", len(got))
	}
	for i, p := range got {
		m := minutes - 1 - 1440 + i
		if want := (HistoryPoint{time.Duration(m)*time.Minute + 2*time.Second, cgroup.Amount(m), cgroup.Amount(2 * m)}); p != want {
			t.Fatalf("point %d: %+v, want %+v", i, p, want)
		}
	}
}

func TestHeld(t *testing.T) {
	const absent = cgroup.Absent
	for _, tc := range []struct {
		name              string
		anon, shmem, swap cgroup.Amount
		want              cgroup.Amount
	}{
		{"all", 1, 20, 300, 321},
		{"no swap, old kernel", 1, absent, absent, 1},
		{"no anon", absent, 20, 300, absent},
	} {
		if got := (&GroupSample{Anon: tc.anon, Shmem: tc.shmem, Swap: tc.swap, Usage: 7}).held(); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	for _, tc := range []struct{ capacity, available, want cgroup.Amount }{{10, 4, 6}, {10, 10, 0}, {10, absent, absent}, {absent, 4, absent}, {10, 11, absent}} {
		if got := (&NodeSample{Capacity: tc.capacity, MemAvailable: tc.available}).held(); got != tc.want {
			t.Errorf("capacity %v, available %v: %v, want %v", tc.capacity, tc.available, got, tc.want)
		}
	}
}

// A window leaves out what is too old, and keeps what is exactly as old as it may be.
func TestReadKeepsTheWindow(t *testing.T) {
	r := ring.New(100, groupWidth)
	for i := range 50 {
		var rec [groupWidth]uint64
		(&GroupSample{At: time.Duration(i) * time.Second, Usage: cgroup.Amount(i)}).encode(&rec)
		r.Append(rec[:])
	}
	got, _ := read(r, make([]GroupSample, 100), nil, 12*time.Second, (*GroupSample).decode)
	if len(got) != 13 || got[0].Usage != 37 || got[12].Usage != 49 {
		t.Errorf("%d samples, %v to %v", len(got), got[0], got[len(got)-1])
	}
	got, _ = read(r, make([]GroupSample, 3), nil, 12*time.Second, (*GroupSample).decode)
	if len(got) != 3 || got[0].Usage != 47 {
		t.Errorf("%d samples in a buffer of 3: %v", len(got), got)
	}
	if got, _ = read(r, nil, nil, time.Second, (*GroupSample).decode); len(got) != 0 {
		t.Errorf("%d samples in no buffer", len(got))
	}
}

// TestMemoryBudget: the rings of 110 pods with three containers each, and of the node.
func TestMemoryBudget(t *testing.T) {
	const pods, containers, budget = 110, 3, 10 << 20
	n := newNode(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	all := make([]*Series, 0, pods)
	for range pods {
		x := newSeries(Target{}, nil, s.podSlots, nil)
		var list []*Container
		for range containers {
			list = append(list, newContainer(Leaf{}, nil))
		}
		x.containers.Store(&list)
		all = append(all, x)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	s.countBytes(nil)
	node := s.Health().RingBytes
	s.countBytes(all)
	sum, heap := s.Health().RingBytes, int64(after.HeapAlloc-before.HeapAlloc)
	t.Logf("node %d KiB, a pod with %d containers %.1f KiB, %d pods %.2f MiB; on the heap %.2f MiB",
		node>>10, containers, float64(sum-node)/pods/1024, pods, float64(sum)/(1<<20), float64(heap)/(1<<20))
	if sum > budget || heap > budget {
		t.Errorf("%d bytes of rings, %d on the heap, budget %d", sum, heap, budget)
	}
	if heap < sum {
		t.Errorf("%d bytes on the heap, less than the %d that were counted", heap, sum)
	}
	if bytes := all[0].history.ring.Bytes(); bytes != 1440*24 {
		t.Errorf("a history takes %d bytes", bytes)
	}
	runtime.KeepAlive(all)
}
