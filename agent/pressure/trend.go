package pressure

import (
	"math"
	"time"
)

// A trend needs at least this much evidence, or there is none (and no ETA).
const (
	MinPoints = 5
	MinSpan   = 300 * time.Millisecond
)

// Point is one value of a series, in bytes.
type Point struct {
	At    time.Duration
	Value Bytes
}

// Trend is the straight line through a window of a series.
type Trend struct {
	Known bool
	Slope float64 // bytes per second
	Error float64 // standard error of Slope, bytes per second
	N     int
	Span  time.Duration // from the first to the last point
}

// Rising reports whether the slope is above its own uncertainty.
func (t Trend) Rising() bool { return t.Known && t.Slope > 0 && t.Slope > t.Error }

// Falling reports whether the slope is below zero by more than its own uncertainty.
func (t Trend) Falling() bool { return t.Known && t.Slope < 0 && -t.Slope > t.Error }

// Clear reports whether the slope is above zero by three times its own uncertainty. A series without any trend looks
// like rising in one window of six, and like clearly rising in one of some 700.
func (t Trend) Clear() bool { return t.Known && t.Slope > 0 && t.Slope > 3*t.Error }

// Upper is the upper bound of the slope: one standard error above it.
func (t Trend) Upper() float64 { return t.Slope + t.Error }

// Fit lays a least-squares line through the points that are at most window older than the last one. Points whose
// value is Unknown are left out. Times must not decrease; a window with a step back in time has no trend.
func Fit(points []Point, window time.Duration) Trend {
	if len(points) == 0 {
		return Trend{}
	}
	last := points[len(points)-1].At
	var n, sumT, sumV float64
	var first, prev time.Duration
	count := 0
	for _, p := range points {
		if p.At < last-window || !p.Value.Known() {
			continue
		}
		if count == 0 {
			first = p.At
		} else if p.At < prev {
			return Trend{}
		}
		prev = p.At
		count++
		n++
		sumT += (p.At - last).Seconds()
		sumV += float64(p.Value)
	}
	if count == 0 {
		return Trend{}
	}
	tr := Trend{N: count, Span: prev - first}
	if count < MinPoints || tr.Span < MinSpan {
		return tr
	}
	meanT, meanV := sumT/n, sumV/n
	var sxx, sxy, syy float64
	for _, p := range points {
		if p.At < last-window || !p.Value.Known() {
			continue
		}
		dt, dv := (p.At-last).Seconds()-meanT, float64(p.Value)-meanV
		sxx += dt * dt
		sxy += dt * dv
		syy += dv * dv
	}
	if sxx == 0 {
		return tr
	}
	tr.Known = true
	tr.Slope = sxy / sxx
	if rest := syy - tr.Slope*sxy; rest > 0 && n > 2 {
		tr.Error = math.Sqrt(rest / (n - 2) / sxx)
	}
	return tr
}
