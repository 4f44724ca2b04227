package incident

import (
	"math"
	"slices"
	"strconv"
	"time"

	"spillway/agent/pressure"
)

// How many points of a series are kept: a second apart, and closer right before and after the first trigger.
const (
	maxSeconds = 125
	maxFast    = 48
	maxRest    = 95
)

// Value is one figure in the unit of its column; None: it was not read.
type Value int64

// None is null in JSON.
const None Value = math.MinInt64

// MarshalJSON writes null for None.
func (v Value) MarshalJSON() ([]byte, error) {
	if v == None {
		return []byte("null"), nil
	}
	return strconv.AppendInt(nil, int64(v), 10), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (v *Value) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		*v = None
		return nil
	}
	n, err := strconv.ParseInt(string(data), 10, 64)
	*v = Value(n)
	return err
}

// Units of columns.
const (
	KiB      = "KiB"
	PerMille = "per mille"
)

// Column is one figure over time.
type Column struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Values []Value `json:"values"`
}

// Series are columns over the same moments, oldest first.
type Series struct {
	At      []int64  `json:"atMilliseconds"` // from the incident's beginning; negative: before
	Columns []Column `json:"columns"`
}

// Column returns the values of one column, nil when there is none.
func (s *Series) Column(name string) []Value {
	for i := range s.Columns {
		if s.Columns[i].Name == name {
			return s.Columns[i].Values
		}
	}
	return nil
}

// valid reports whether all columns have as many values as there are moments, which do not go back.
func (s *Series) valid() bool {
	return slices.IsSorted(s.At) && !slices.ContainsFunc(s.Columns, func(c Column) bool { return len(c.Values) != len(s.At) })
}

// append puts what is newer than s behind it.
func (s Series) append(rest Series) Series {
	if len(s.At) == 0 {
		return rest
	}
	last, from := s.At[len(s.At)-1], 0
	for from < len(rest.At) && rest.At[from] <= last {
		from++
	}
	out := Series{At: append(slices.Clone(s.At), rest.At[from:]...)}
	for _, c := range s.Columns {
		more := rest.Column(c.Name)
		if more == nil {
			more = make([]Value, len(rest.At))
			for i := range more {
				more[i] = None
			}
		}
		c.Values = append(slices.Clone(c.Values), more[from:]...)
		out.Columns = append(out.Columns, c)
	}
	return out
}

// thin leaves every second point out.
func (s Series) thin() Series {
	var out Series
	for i := len(s.At)%2 ^ 1; i < len(s.At); i += 2 { // the newest stays
		out.At = append(out.At, s.At[i])
	}
	for _, c := range s.Columns {
		var values []Value
		for i := len(s.At)%2 ^ 1; i < len(s.At); i += 2 {
			values = append(values, c.Values[i])
		}
		c.Values = values
		out.Columns = append(out.Columns, c)
	}
	return out
}

// PodPoint is one reading of a pod.
type PodPoint struct {
	At                                  time.Duration // since boot
	WorkingSet, Anon, ActiveFile, Usage pressure.Bytes
}

// Window says which part of a series is meant; times since boot.
type Window struct {
	Began    time.Duration // of the incident: what the moments are counted from
	From, To time.Duration
}

// Choose puts samples that were kept each second and those of full pace together, oldest first, and leaves out so many that
// the bound of a series holds. Within the window, samples of full pace are wanted only when fast is true.
func Choose[T any](seconds, full []T, at func(*T) time.Duration, w Window, fast bool) []T {
	inside := func(x T) bool { return at(&x) >= w.From && at(&x) <= w.To }
	seconds = filter(seconds, inside)
	full = filter(full, inside)
	if !fast {
		return spread(seconds, maxRest)
	}
	full = spread(full, maxFast)
	if len(full) > 0 {
		seconds = filter(seconds, func(x T) bool { return at(&x) < at(&full[0]) })
	}
	return append(spread(seconds, maxSeconds), full...)
}

func filter[T any](in []T, keep func(T) bool) []T {
	var out []T
	for _, x := range in {
		if keep(x) {
			out = append(out, x)
		}
	}
	return out
}

// spread leaves points out evenly until no more than most are left; the first and the last stay.
func spread[T any](in []T, most int) []T {
	if len(in) <= most {
		return in
	}
	out := make([]T, 0, most)
	for i := range most {
		out = append(out, in[i*(len(in)-1)/(most-1)])
	}
	return out
}

// NodeSeries makes the node's columns, with the smallest hard margin of each moment. Stall is the part of the time since the
// point before in which some task, or all, waited for memory.
func NodeSeries(samples []pressure.Sample, thresholds []pressure.Threshold, began time.Duration) Series {
	n := len(samples)
	s := Series{At: make([]int64, 0, n)}
	margin, ws, cache := make([]Value, 0, n), make([]Value, 0, n), make([]Value, 0, n)
	pods, podsCache, available := make([]Value, 0, n), make([]Value, 0, n), make([]Value, 0, n)
	some, full := make([]Value, 0, n), make([]Value, 0, n)
	for i := range samples {
		x := &samples[i]
		s.At = append(s.At, (x.At - began).Milliseconds())
		margin = append(margin, kib(Margin(x, thresholds)))
		ws, cache = append(ws, kib(x.RootWorkingSet)), append(cache, kib(x.RootActiveFile))
		pods, podsCache = append(pods, kib(x.PodsWorkingSet)), append(podsCache, kib(x.PodsActiveFile))
		available = append(available, kib(x.MemAvailable))
		last := &samples[max(0, i-1)]
		some = append(some, share(last.StallSome, x.StallSome, x.At-last.At))
		full = append(full, share(last.StallFull, x.StallFull, x.At-last.At))
	}
	s.Columns = []Column{{"margin", KiB, margin}, {"rootWorkingSet", KiB, ws}, {"rootActiveFile", KiB, cache},
		{"podsWorkingSet", KiB, pods},
		{"podsActiveFile", KiB, podsCache}, {"memAvailable", KiB, available}, {"stallSome", PerMille, some}, {"stallFull", PerMille, full}}
	return s
}

// PodSeries makes a pod's columns.
func PodSeries(points []PodPoint, began time.Duration) Series {
	n := len(points)
	s := Series{At: make([]int64, 0, n)}
	ws, anon, cache := make([]Value, 0, n), make([]Value, 0, n), make([]Value, 0, n)
	for _, p := range points {
		s.At = append(s.At, (p.At - began).Milliseconds())
		ws, anon, cache = append(ws, kib(p.WorkingSet)), append(anon, kib(p.Anon)), append(cache, kib(p.ActiveFile))
	}
	s.Columns = []Column{{"workingSet", KiB, ws}, {"anon", KiB, anon}, {"activeFile", KiB, cache}}
	return s
}

// Margin is the smallest distance to a hard threshold, Unknown when none can be read.
func Margin(s *pressure.Sample, thresholds []pressure.Threshold) pressure.Bytes {
	low := pressure.Unknown
	for _, t := range thresholds {
		if !t.Hard {
			continue
		}
		if m := t.Read(s).Margin; m.Known() && (!low.Known() || m < low) {
			low = m
		}
	}
	return low
}

func kib(b pressure.Bytes) Value {
	if !b.Known() {
		return None
	}
	return Value(b / 1024)
}

func share(before, now pressure.Count, over time.Duration) Value {
	if !before.Known() || !now.Known() || now < before || over <= 0 {
		return None
	}
	return Value(min(1000, int64(now-before)*1000/max(1, over.Microseconds())))
}
