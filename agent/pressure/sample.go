// Package pressure turns readings of the node into a verdict: how far the kubelet's thresholds are, how fast they
// come nearer, what the growth is made of, and which level that means, with the reason for each. It is pure: the
// same input gives the same output; it reads no clock, no file and no network.
package pressure

import (
	"math"
	"time"
)

// Bytes is an amount of memory in bytes, or a difference of two. A reading that is not there is Unknown, never 0.
type Bytes int64

// Unknown marks a reading that is missing, stale or malformed.
const Unknown Bytes = math.MinInt64

// Known reports whether b is a real amount.
func (b Bytes) Known() bool { return b != Unknown }

// minus returns b − c, Unknown when either is.
func (b Bytes) minus(c Bytes) Bytes {
	if b == Unknown || c == Unknown {
		return Unknown
	}
	return b - c
}

// Sample is one reading of the node.
type Sample struct {
	At time.Duration // since boot (CLOCK_BOOTTIME)

	Capacity       Bytes // MemTotal
	RootWorkingSet Bytes // root cgroup, by the kubelet's formula
	RootActiveFile Bytes // part of RootWorkingSet that is active page cache
	PodsWorkingSet Bytes // kubepods cgroup
	PodsActiveFile Bytes
	PodsLimit      Bytes // kubepods limit; Unknown when unlimited or absent
	MemAvailable   Bytes // /proc/meminfo
	// RootMeminfo is what older kubelets take for RootWorkingSet on v2, see FromMeminfo: MemTotal − MemFree of
	// /proc/meminfo less inactive_file of the root cgroup, 0 at least. Read only where a threshold says so.
	RootMeminfo Bytes

	StallSome, StallFull Count // total= of /proc/pressure/memory, microseconds; Missing without PSI
}

// Signal names what a threshold is compared with.
type Signal string

// The signals of a node. The first two are the kubelet's own; MemAvailable is the second margin that guards
// against a global OOM kill, because the kubelet's root figure leaves kernel memory out.
const (
	MemoryAvailable      Signal = "memory.available"
	AllocatableAvailable Signal = "allocatableMemory.available"
	MemAvailable         Signal = "MemAvailable"
)

// RootFormula says which figure a kubelet takes for the working set of the whole node.
type RootFormula uint8

// The formulas. On v1 there is only the first.
const (
	FromCgroup  RootFormula = iota // v1 usage_in_bytes, v2 anon + file of memory.stat; less inactive_file
	FromMeminfo                    // v2 up to kubelet 1.28: MemTotal − MemFree; less inactive_file
)

// Threshold is one line that the signal must stay above.
type Threshold struct {
	Signal  Signal
	Hard    bool          // false: a soft threshold of the kubelet
	Bytes   Bytes         // absolute; used when Percent is 0
	Percent float64       // of the signal's capacity: MemTotal, or the limit of kubepods
	Grace   time.Duration // soft thresholds: how long the kubelet waits
	Root    RootFormula   // how the kubelet reads the node for memory.available
	Source  string        // where the number comes from, for status and records
}

// Guard returns the MemAvailable threshold: 0.5 % of capacity, at least 32 and at most 256 MiB. Steady nodes of 1 GiB and of
// 1 TiB have little more than 1 % available.
func Guard(capacity Bytes) Threshold {
	return Threshold{Signal: MemAvailable, Hard: true, Bytes: min(max(capacity/200, 32<<20), 256<<20), Source: "built in"}
}

// Reading is a threshold held against one sample.
type Reading struct {
	Threshold
	Available Bytes // Unknown when the signal cannot be read
	Limit     Bytes // the threshold in bytes
	Margin    Bytes // Available − Limit
}

// Read holds t against s.
func (t Threshold) Read(s *Sample) Reading {
	available, limit := t.values(s)
	return Reading{Threshold: t, Available: available, Limit: limit, Margin: available.minus(limit)}
}

func (t *Threshold) margin(s *Sample) Bytes {
	available, limit := t.values(s)
	return available.minus(limit)
}

func (t *Threshold) values(s *Sample) (available, limit Bytes) {
	capacity, available := Unknown, Unknown
	switch t.Signal {
	case MemoryAvailable:
		capacity = s.Capacity
		available = s.Capacity.minus(s.RootWorkingSet)
		if t.Root == FromMeminfo {
			available = s.Capacity.minus(s.RootMeminfo)
		}
	case AllocatableAvailable:
		capacity = s.PodsLimit
		available = s.PodsLimit.minus(s.PodsWorkingSet)
	case MemAvailable:
		capacity = s.Capacity
		available = s.MemAvailable
	}
	limit = t.Bytes
	if t.Percent != 0 {
		limit = Unknown
		if capacity.Known() {
			limit = Bytes(float64(capacity) * t.Percent / 100)
		}
	}
	return available, limit
}

// activeFile returns the page cache that counts as used in the signal; MemAvailable counts none.
func (s *Sample) activeFile(sig Signal) Bytes {
	switch sig {
	case MemoryAvailable:
		return s.RootActiveFile
	case AllocatableAvailable:
		return s.PodsActiveFile
	}
	return 0
}

// kubeletMargin returns the smallest margin to a hard threshold of the kubelet, Unknown when it has none.
func (v *Verdict) kubeletMargin() Bytes {
	least := Unknown
	for i := range v.Readings {
		r := &v.Readings[i]
		if r.Hard && r.Signal != MemAvailable && r.Margin.Known() && (!least.Known() || r.Margin < least) {
			least = r.Margin
		}
	}
	return least
}

// smallestHardMargin returns the reading of the hard threshold that is nearest. ok is false when no hard threshold
// can be read at all; signals that cannot be read are passed over.
func smallestHardMargin(s *Sample, thresholds []Threshold) (r Reading, ok bool) {
	for _, t := range thresholds {
		if !t.Hard {
			continue
		}
		if got := t.Read(s); got.Margin.Known() && (!ok || got.Margin < r.Margin) {
			r, ok = got, true
		}
	}
	return r, ok
}
