// Package timing learns what an eviction takes on this node besides the exit of its pod: the call, the cut of a grace period, and
// the return of memory. It reads no clock and no file: the caller says what it saw and when.
package timing

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"spillway/agent/policy"
)

// What is kept, and for how long.
const (
	keepCalls = 100
	keepOther = 20
	least     = 3 // below it the usual value stays
	forget    = 14 * 24 * time.Hour
)

// What is learned of each, and what may come of it. A measure outside of its range is no measure: a clock was set, the node stood
// still, or something else was seen.
const (
	longestCall = 10 * time.Second // after it an eviction without an answer counts as one that did not happen
	mostCall    = 3 * time.Second
	callReserve = 500 * time.Millisecond

	longestCut = 30 * time.Second
	mostCut    = 10 * time.Second
	cutReserve = 500 * time.Millisecond
	// The kubelet stops no container within less than 2 s of a deletion (minimumGracePeriodInSeconds in
	// pkg/kubelet/kuberuntime), the runtime is asked with 1 s: a pod that was gone before had ended by itself.
	leastCut  = 2 * time.Second
	leastStop = time.Second

	leastBack = 256 << 20 // bytes per second; less is the program's own pace, or containers that end one after another
	mostBack  = 32 << 30
)

// measure is one value: seconds, or bytes per second.
type measure struct {
	At    time.Time `json:"at"`
	Value float64   `json:"value"`
}

// Times is for one goroutine. The zero value has measured nothing.
type Times struct {
	calls, cuts, stops, backs []measure // oldest first
	changed                   bool
}

// Call takes the time from asking for an eviction until the pod watch showed the pod terminating. It reports whether it is kept.
func (t *Times) Call(now time.Time, took time.Duration) bool {
	return t.add(&t.calls, now, took.Seconds(), took > 0 && took <= longestCall, keepCalls)
}

// Cut takes the time from asking to cut a grace period short until the last process was gone. stopped says that the container
// runtime was asked as well. It reports whether it is kept.
func (t *Times) Cut(now time.Time, took time.Duration, stopped bool) bool {
	to, lowest := &t.cuts, leastCut
	if stopped {
		to, lowest = &t.stops, leastStop
	}
	return t.add(to, now, took.Seconds(), took >= lowest && took <= longestCut, keepOther)
}

// Released takes the memory of a pod without processes, as it was read while it ended, oldest first. It reports whether a rate
// could be told from it.
func (t *Times) Released(now time.Time, points []Point) bool {
	rate := release(points)
	return t.add(&t.backs, now, rate, rate >= leastBack, keepOther)
}

func (t *Times) add(to *[]measure, now time.Time, value float64, ok bool, keep int) bool {
	if !ok {
		return false
	}
	*to = append(young(now, *to), measure{now.UTC().Round(0), value})
	*to = (*to)[max(0, len(*to)-keep):]
	t.changed = true
	return true
}

// young leaves out what is too old. What lies ahead, as the clock was set back, counts as of now.
func young(now time.Time, all []measure) []measure {
	out := make([]measure, 0, len(all)+1)
	for _, m := range all {
		if m.At.After(now) {
			m.At = now.UTC().Round(0)
		}
		if now.Sub(m.At) <= forget {
			out = append(out, m)
		}
	}
	return out
}

// Timing returns what evictions take. stops says that the container runtime may be asked to stop containers. What was measured
// fewer than three times is left at zero.
//
// No measure decides alone: of durations the second longest counts (of a hundred that is the 99th percentile), of rates the lower
// quartile, but not the slowest.
func (t *Times) Timing(stops bool) policy.Timing {
	out := policy.Timing{Stops: stops}
	if s, ok := secondLongest(t.calls); ok {
		out.Call = min(s, mostCall) + callReserve
	}
	cuts, lowest := t.cuts, leastCut
	if stops {
		cuts, lowest = t.stops, leastStop
	}
	if s, ok := secondLongest(cuts); ok {
		out.Cut = min(max(s, lowest), mostCut) + cutReserve
	}
	if n := len(t.backs); n >= least {
		out.Back = min(sorted(t.backs)[max(1, (n+3)/4-1)], mostBack)
	}
	return out
}

// Counts is how often each part was measured, of those that are kept.
type Counts struct{ Calls, Cuts, Backs int }

// Counts returns how many measures Timing rests on.
func (t *Times) Counts(stops bool) Counts {
	out := Counts{len(t.calls), len(t.cuts), len(t.backs)}
	if stops {
		out.Cuts = len(t.stops)
	}
	return out
}

func secondLongest(all []measure) (time.Duration, bool) {
	if len(all) < least {
		return 0, false
	}
	return time.Duration(sorted(all)[len(all)-2] * float64(time.Second)), true
}

func sorted(all []measure) []float64 {
	out := make([]float64, len(all))
	for i, m := range all {
		out[i] = m.Value
	}
	slices.Sort(out)
	return out
}

const version = 1

type document struct {
	Version int       `json:"version"`
	Calls   []measure `json:"callSeconds,omitempty"`
	Cuts    []measure `json:"cutSeconds,omitempty"`
	Stops   []measure `json:"cutByRuntimeSeconds,omitempty"`
	Backs   []measure `json:"backBytesPerSecond,omitempty"`
}

// Changed reports whether something was measured since the last Save.
func (t *Times) Changed() bool { return t.changed }

// Save returns what was measured, for Load.
func (t *Times) Save() ([]byte, error) {
	t.changed = false
	return json.Marshal(document{version, t.calls, t.cuts, t.stops, t.backs})
}

// Load takes over what Save returned; what is out of range or older than two weeks is left out.
func (t *Times) Load(now time.Time, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("parse what evictions take: %w", err)
	}
	if d.Version != version {
		return fmt.Errorf("parse what evictions take: version %d, this program reads version %d", d.Version, version)
	}
	take := func(from []measure, lowest, highest float64, keep int) []measure {
		out := slices.DeleteFunc(young(now, from), func(m measure) bool { return !(m.Value >= lowest && m.Value <= highest) || m.Value == 0 })
		return out[max(0, len(out)-keep):]
	}
	t.calls = take(d.Calls, 0, longestCall.Seconds(), keepCalls)
	t.cuts = take(d.Cuts, leastCut.Seconds(), longestCut.Seconds(), keepOther)
	t.stops = take(d.Stops, leastStop.Seconds(), longestCut.Seconds(), keepOther)
	t.backs = take(d.Backs, leastBack, math.MaxFloat64, keepOther)
	return nil
}
