package pressure

import (
	"fmt"
	"time"
)

// Slow is one reading of what is too dear to read with every Sample. A figure that could not be read is Unknown, a
// counter Missing. The parts must not overlap: a kernel that charges its memory to cgroups counts it in theirs too, so
// Kernel is what is left after Charged.
type Slow struct {
	At time.Duration // since boot

	Used    Bytes // by the whole node, without page cache that can be dropped: MemTotal − MemAvailable
	Pods    Bytes // kubepods, without its page cache (working set less active file)
	System  Bytes // the other top-level cgroups together, in the same way
	Kernel  Bytes // SUnreclaim + KernelStack + PageTables + Percpu of /proc/meminfo
	Charged Bytes // the part of Kernel that Pods and System contain; Unknown takes it as none

	AllocStall Count // sum of allocstall_* of /proc/vmstat
	ScanDirect Count // pgscan_direct
	MajorFault Count // pgmajfault
}

// kernel is the kernel's memory that no cgroup's figure contains.
func (s *Slow) kernel() Bytes {
	if !s.Kernel.Known() || !s.Charged.Known() {
		return s.Kernel
	}
	return max(0, s.Kernel-s.Charged)
}

// Part names where memory that is not the pods' grows.
type Part string

// The parts beside the pods.
const (
	PartNone        Part = ""
	PartSystem      Part = "system-slices"
	PartKernel      Part = "kernel"
	PartUnexplained Part = "unexplained" // neither cgroups nor kernel show it: drivers, hugepages, guests
)

// Split says what the node's growth over the long window is made of, in bytes per second; negative is shrinking.
// Unexplained is what the others leave of Node, unknown when one of them is. It can be negative.
type Split struct {
	Node, Pods, System, Kernel, Unexplained Rate
}

// SplitGrowth fits each part over LongWindow; slow is oldest first. A part with too few readings is unknown.
func SplitGrowth(slow []Slow) Split {
	if len(slow) == 0 {
		return Split{}
	}
	last := slow[len(slow)-1].At
	var l [4]line
	for i := range l {
		l[i] = newLine(last, LongWindow)
	}
	for i := len(slow) - 1; i >= 0; i-- {
		s := &slow[i]
		if s.At < last-LongWindow {
			break
		}
		for k, v := range [...]Bytes{s.Used, s.Pods, s.System, s.kernel()} {
			l[k].add(s.At, v)
		}
	}
	var r [4]Rate
	for i := range l {
		if t := l[i].trend(); t.Known {
			r[i] = Rate{Known: true, Value: t.Slope}
		}
	}
	return splitOf(r)
}

// splitBetween is the same from two readings, in bytes instead of bytes per second.
func splitBetween(then, now *Slow) Split {
	var r [4]Rate
	for i, d := range [...]Bytes{now.Used.minus(then.Used), now.Pods.minus(then.Pods), now.System.minus(then.System), now.kernel().minus(then.kernel())} {
		if d.Known() {
			r[i] = Rate{Known: true, Value: float64(d)}
		}
	}
	return splitOf(r)
}

func splitOf(r [4]Rate) Split {
	s := Split{Node: r[0], Pods: r[1], System: r[2], Kernel: r[3]}
	if s.Node.Known && s.Pods.Known && s.System.Known && s.Kernel.Known {
		s.Unexplained = Rate{Known: true, Value: s.Node.Value - s.Pods.Value - s.System.Value - s.Kernel.Value}
	}
	return s
}

// Outside returns the part beside the pods that grows most, PartNone when none is known to grow.
func (s Split) Outside() (Part, float64) {
	part, most := PartNone, 0.0
	for _, p := range [...]struct {
		part Part
		rate Rate
	}{{PartSystem, s.System}, {PartKernel, s.Kernel}, {PartUnexplained, s.Unexplained}} {
		if p.rate.Known && p.rate.Value > most {
			part, most = p.part, p.rate.Value
		}
	}
	return part, most
}

// outside names the part beside the pods that grew: now, or since the node was calm when it stands still.
func (v *Verdict) outside(mem *Memory, slow []Slow) string {
	var most float64
	if v.Part, most = v.Split.Outside(); v.Part != PartNone && v.Slope > 0 {
		return fmt.Sprintf("%s grows by %s/s", v.Part.text(), size(most))
	}
	if mem.hasCalmSlow && len(slow) > 0 {
		if v.Part, most = splitBetween(&mem.calmSlow, &slow[len(slow)-1]).Outside(); v.Part != PartNone {
			return fmt.Sprintf("%s grew by %s since the node was calm", v.Part.text(), size(most))
		}
	}
	v.Part = PartNone
	return "which part is not known"
}

func (p Part) text() string {
	switch p {
	case PartSystem:
		return "memory of system slices"
	case PartKernel:
		return "memory of the kernel"
	}
	return "memory that no part explains"
}
