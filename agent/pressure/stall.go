package pressure

import (
	"fmt"
	"math"
	"time"
)

// Count is a counter of the kernel that only rises: microseconds of stall, pages, events.
type Count int64

// Missing marks a counter that could not be read.
const Missing Count = math.MinInt64

// Known reports whether c was read.
func (c Count) Known() bool { return c != Missing }

// Share is a part of a whole, 0 to 1. The zero value is unknown.
type Share struct {
	Known bool
	Value float64
}

// Rate is an amount per second. The zero value is unknown.
type Rate struct {
	Known bool
	Value float64
}

// The windows of a Stall.
const (
	window200ms = 200 * time.Millisecond
	window1s    = time.Second
	window10s   = 10 * time.Second
)

// StallPoint is one reading of a pressure file (Documentation/accounting/psi.rst): total= of its lines, microseconds.
type StallPoint struct {
	At         time.Duration // since boot, taken before the file was read
	Some, Full Count
}

// Stall is the part of the last 200 ms, 1 s and 10 s in which some task, or every task that could have run, waited for
// memory. The kernel's own avg10 is not used: it is renewed every 2 s and still tells of a stall that ended long ago.
type Stall struct {
	Some200ms, Some1s, Some10s Share
	Full200ms, Full1s, Full10s Share
}

// stallOf computes the shares from n readings of one file, oldest first; the node's and a cgroup's alike.
//
// A window is covered by the newest reading and the one that lies nearest to its begin, at 80 to 120 % of its length;
// otherwise its share is unknown, as it is where the newest reading is. Across a counter or a clock that went back
// nothing is compared: the windows fill anew. A total can be up to a tick behind, and a reader that is held up between
// clock and file sees a later total, so a share of up to 1.25 counts as 1; a larger one is malformed and unknown.
func stallOf(n int, at func(int) StallPoint) Stall {
	var s Stall
	some := func(i int) (time.Duration, Count) { p := at(i); return p.At, p.Some }
	full := func(i int) (time.Duration, Count) { p := at(i); return p.At, p.Full }
	windows := [...]time.Duration{window200ms, window1s, window10s}
	for i, r := range perSecond(n, some, windows) {
		*[...]*Share{&s.Some200ms, &s.Some1s, &s.Some10s}[i] = stallShare(r)
	}
	for i, r := range perSecond(n, full, windows) {
		*[...]*Share{&s.Full200ms, &s.Full1s, &s.Full10s}[i] = stallShare(r)
	}
	return s
}

// stallShare turns microseconds per second into a share.
func stallShare(r Rate) Share {
	const most = 1.25
	if v := r.Value / 1e6; r.Known && v <= most {
		return Share{Known: true, Value: min(1, v)}
	}
	return Share{}
}

// perSecond returns how fast a counter rose over each window, from the newest reading and the one nearest to the
// begin of the window.
func perSecond(n int, at func(int) (time.Duration, Count), windows [3]time.Duration) (out [3]Rate) {
	if n == 0 {
		return out
	}
	end, last := at(n - 1)
	if !last.Known() {
		return out
	}
	var off [3]time.Duration // how far the begin was missed
	prev, lower := end, last
	for i := n - 2; i >= 0; i-- {
		t, c := at(i)
		if !c.Known() {
			continue
		}
		if t > prev || c > lower {
			break
		}
		prev, lower = t, c
		span := end - t
		if span > windows[1]*6/5 && span < windows[2]*4/5 {
			continue // between the windows only the order matters
		}
		for k, w := range windows {
			miss := span - w
			if miss < 0 {
				miss = -miss
			}
			if miss <= w/5 && span > 0 && (!out[k].Known || miss < off[k]) {
				out[k], off[k] = Rate{Known: true, Value: float64(last-c) / span.Seconds()}, miss
			}
		}
		if span > windows[2]+windows[2]/5 {
			break
		}
	}
	return out
}

// Reclaim is what stands in for a Stall on a node without PSI: how fast /proc/vmstat counts over the last 1 s and 10 s.
// The kernel counts allocation stalls and scans there only for reclaim of the node, not for that of a cgroup at its
// limit (mm/vmscan.c), and major faults of all tasks.
type Reclaim struct {
	AllocStall1s, AllocStall10s Rate // tasks that had to reclaim before they got a page, per second
	ScanDirect1s, ScanDirect10s Rate // pages looked at by them, per second
	MajorFault1s, MajorFault10s Rate // faults that waited for a disk, per second
}

// ReclaimOf computes the rates from slow samples, oldest first, under the rules of stallOf: a window that is not
// covered, a counter that is missing and one that went back are unknown.
func ReclaimOf(slow []Slow) Reclaim {
	var r Reclaim
	windows := [...]time.Duration{window200ms, window1s, window10s}
	for _, c := range []struct {
		of       func(*Slow) Count
		one, ten *Rate
	}{
		{func(s *Slow) Count { return s.AllocStall }, &r.AllocStall1s, &r.AllocStall10s},
		{func(s *Slow) Count { return s.ScanDirect }, &r.ScanDirect1s, &r.ScanDirect10s},
		{func(s *Slow) Count { return s.MajorFault }, &r.MajorFault1s, &r.MajorFault10s},
	} {
		got := perSecond(len(slow), func(i int) (time.Duration, Count) { return slow[i].At, c.of(&slow[i]) }, windows)
		*c.one, *c.ten = got[1], got[2]
	}
	return r
}

// What counts as the node waiting for memory. A full stall of a tenth of 200 ms is far above what background reclaim
// costs; ten tasks a second in direct reclaim are its like where there is no PSI.
const (
	stallAlert      = 0.10
	allocStallAlert = 10
	// stallHorizon is the ETA under which the margin counts as shrinking towards a shortage.
	stallHorizon = 10 * time.Minute
)

// waits says how the node waits for memory, "" when it does not or nothing tells. What pods stall at their own limits
// is taken out: that is no shortage of the node.
func waits(s Stall, r Reclaim, explained Share) string {
	if s.Full200ms.Known {
		v := s.Full200ms.Value
		if explained.Known {
			v *= 1 - explained.Value
		}
		if v >= stallAlert {
			return fmt.Sprintf("all tasks waited for memory in %.0f %% of the last 200 ms", 100*v)
		}
		return ""
	}
	if !s.Some10s.Known && r.AllocStall1s.Known && r.AllocStall1s.Value >= allocStallAlert {
		return fmt.Sprintf("%.0f tasks a second had to reclaim memory themselves", r.AllocStall1s.Value)
	}
	return ""
}
