package pressure

import (
	"math"
	"strings"
	"testing"
	"time"
)

// slowOf makes a reading of MiB.
func slowOf(s, pods, system, kernel, rest float64) Slow {
	return Slow{At: seconds(s), Used: mibBytes(pods + system + kernel + rest), Pods: mibBytes(pods), System: mibBytes(system),
		Kernel: mibBytes(kernel), Charged: Unknown, AllocStall: Missing, ScanDirect: Missing, MajorFault: Missing}
}

func TestSplitGrowth(t *testing.T) {
	series := func(n int, change func(i int, s *Slow)) []Slow {
		var out []Slow
		for i := range n {
			s := float64(i)
			x := slowOf(3600+s, 1000+10*s, 500+20*s, 300+30*s, 40+s)
			if change != nil {
				change(i, &x)
			}
			out = append(out, x)
		}
		return out
	}
	is := func(m float64) Rate { return Rate{true, m * (1 << 20)} }
	none := Rate{}
	for _, tc := range []struct {
		name string
		slow []Slow
		want Split
		part Part
	}{
		{"nothing", nil, Split{}, PartNone},
		{"too few", series(4, nil), Split{}, PartNone},
		{"all parts", series(12, nil), Split{is(61), is(10), is(20), is(30), is(1)}, PartKernel},
		{"every 200 ms in the end", append(series(8, nil), slowOf(3607.2, 1072, 644, 516, 47.2), slowOf(3607.4, 1074, 648, 522, 47.4)), Split{is(61), is(10), is(20), is(30), is(1)}, PartKernel},
		{"the kernel unknown", series(12, func(_ int, s *Slow) { s.Kernel = Unknown }), Split{is(61), is(10), is(20), none, none}, PartSystem},
		{"the node unknown", series(12, func(_ int, s *Slow) { s.Used = Unknown }), Split{none, is(10), is(20), is(30), none}, PartKernel},
		{"kernel memory that the cgroups were charged for", series(12, func(i int, s *Slow) { s.Charged = mibBytes(25 * float64(i)) }), Split{is(61), is(10), is(20), is(5), is(26)}, PartUnexplained},
		{"pods shrink", series(12, func(i int, s *Slow) { s.Pods = mibBytes(1000 - 5*float64(i)) }), Split{is(61), is(-5), is(20), is(30), is(16)}, PartKernel},
		{"nothing beside the pods grows", series(12, func(_ int, s *Slow) { s.System, s.Kernel, s.Used = 5, 5, s.Pods }), Split{is(10), is(10), is(0), is(0), is(0)}, PartNone},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := SplitGrowth(tc.slow)
			for i, p := range [][2]Rate{{got.Node, tc.want.Node}, {got.Pods, tc.want.Pods}, {got.System, tc.want.System}, {got.Kernel, tc.want.Kernel}, {got.Unexplained, tc.want.Unexplained}} {
				if p[0].Known != p[1].Known || math.Abs(p[0].Value-p[1].Value) > 1000 {
					t.Errorf("part %d: got %+v, want %+v", i, p[0], p[1])
				}
			}
			if part, _ := got.Outside(); part != tc.part {
				t.Errorf("outside it is %q, want %q", part, tc.part)
			}
		})
	}
}

// The verdict names the part, while it grows and after it stopped.
func TestOutsideIsNamed(t *testing.T) {
	grown := func(s float64) float64 { return ramp(s, 12, 35, 100) }
	slow := func(system, kernel float64) func(s float64) []Slow {
		return func(s float64) []Slow {
			var out []Slow
			for i := 12; i >= 0; i-- {
				at := math.Floor(s) - float64(i)
				g := grown(at)
				out = append(out, slowOf(max(0, at), 5000, 1000+system*g, 300+kernel*g, (1-system-kernel)*g))
			}
			return out
		}
	}
	for _, tc := range []struct {
		name   string
		slow   func(float64) []Slow
		part   Part
		during string
		after  string
	}{
		{"a service", slow(1, 0), PartSystem, "memory of system slices grows by 100", "memory of system slices grew by 2.25 GiB"},
		{"slab", slow(0, 1), PartKernel, "memory of the kernel grows by 100", "memory of the kernel grew by 2.25 GiB"},
		{"a driver", slow(0, 0), PartUnexplained, "memory that no part explains grows by 100", "memory that no part explains grew by 2.25 GiB"},
		{"mostly slab", slow(0.3, 0.7), PartKernel, "memory of the kernel grows by 70", "memory of the kernel grew by 1.57 GiB"},
		{"no slow samples", nil, PartNone, "which part is not known", "which part is not known"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := trace{lead: 10 * time.Second, slow: tc.slow, load: func(s float64) load {
				return load{pods: leftAt(2048) - 1000, outside: 1000 + grown(s)}
			}}
			seen := 0
			tr.run(t, 60*time.Second, func(s float64, v *Verdict) {
				want := ""
				switch {
				case s > 24 && s < 34:
					want = tc.during
				case s > 50:
					want = tc.after
				default:
					return
				}
				if seen++; v.Cause != CauseOutside || v.Part != tc.part || !strings.Contains(v.Reason, want) {
					t.Fatalf("at %.1f s: cause %s, part %q, reason %q; want %q, %q", s, v.Cause, v.Part, v.Reason, tc.part, want)
				}
			})
			if seen == 0 {
				t.Fatal("nothing was judged")
			}
		})
	}
}
