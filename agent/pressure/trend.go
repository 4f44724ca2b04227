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

// Points are put together in buckets before a line is laid through them: readings that lie closer than minBucket show
// the same charge batches of the kernel twice and are no independent evidence, and a stretch that was read more often
// must not weigh more than one that was read less often.
const (
	minBucket = 50 * time.Millisecond
	perWindow = 20 // buckets in a window
	maxBucket = perWindow + 2
)

// maxGap is the part of its own span that a trend may bridge without a point. What lies before a longer gap is left
// out: two heaps of points make a line of any slope, and one that looks exact.
const maxGap = 0.5

// Point is one value of a series, in bytes.
type Point struct {
	At    time.Duration
	Value Bytes
}

// Trend is the straight line through a window of a series.
type Trend struct {
	Known bool
	Slope float64       // bytes per second
	Error float64       // standard error of Slope, bytes per second, widened when neighbouring points err in the same direction
	N     int           // points that count: buckets of max(50 ms, window / 20) that hold at least one reading
	Span  time.Duration // from the first to the last reading that counts
}

// Rising reports whether the slope is above its own uncertainty.
func (t Trend) Rising() bool { return t.Known && t.Slope > 0 && t.Slope > t.Error }

// Falling reports whether the slope is below zero by more than its own uncertainty.
func (t Trend) Falling() bool { return t.Known && t.Slope < 0 && -t.Slope > t.Error }

// Clear reports whether the slope is above zero by at least three times its own uncertainty, and by more where few
// points say how uncertain it is (five times for five of them: Student's distribution has long tails then). A series
// without any trend looks like rising in one window of six, and like clearly rising in one of a hundred or fewer.
func (t Trend) Clear() bool {
	return t.Known && t.Slope > 0 && t.Slope > (3+6/float64(t.N-2))*t.Error
}

// Fit lays a least-squares line through the points that are at most window older than the last one, however unevenly
// they are spaced. Points whose value is Unknown are left out. Times must not decrease; a window with a step back in
// time has no trend.
func Fit(points []Point, window time.Duration) Trend {
	if len(points) == 0 {
		return Trend{}
	}
	l := newLine(points[len(points)-1].At, window)
	for i := len(points) - 1; i >= 0; i-- {
		if !l.add(points[i].At, points[i].Value) {
			break
		}
	}
	return l.trend()
}

// bucket is what lies in one stretch of time: times relative to the line's last point, values to its first one.
type bucket struct {
	begin       time.Duration
	n           int
	sumAt       time.Duration
	sum         float64
	first, last time.Duration
}

// line collects one window of a series, newest point first.
type line struct {
	last, window, width time.Duration
	prev                time.Duration // of the point added before
	base                Bytes         // value that the others are taken relative to, to keep their digits
	any, broken         bool
	n                   int
	buckets             [maxBucket]bucket
}

func newLine(last, window time.Duration) line {
	return line{last: last, window: window, width: max(minBucket, window/perWindow)}
}

// add takes the next older point; false says that no older one is wanted.
func (l *line) add(at time.Duration, v Bytes) bool {
	if at < l.last-l.window {
		return false
	}
	if v == Unknown {
		return true
	}
	if !l.any {
		l.any, l.base = true, v
	} else if at > l.prev {
		l.broken = true
		return false
	}
	l.prev = at
	// Buckets lie on a fixed grid, so that a point keeps its neighbours while the window moves on.
	if l.n == 0 || at < l.buckets[l.n-1].begin {
		if l.n == maxBucket {
			return false
		}
		l.buckets[l.n] = bucket{begin: at - at%l.width, last: at}
		l.n++
	}
	b := &l.buckets[l.n-1]
	b.n++
	b.sumAt += at - l.last
	b.sum += float64(v - l.base)
	b.first = at
	return true
}

// xy is a point of a plane.
type xy struct{ x, y float64 }

// squares are what a least-squares line is made of: the means of its points and the sums of products of the distances from them.
type squares struct{ meanX, meanY, xx, xy, yy float64 }

// squaresOf rounds every product before it is added: some processors would fuse both steps, and the same series would not have
// the same line everywhere.
func squaresOf(points []xy) (s squares) {
	n := float64(len(points))
	for _, p := range points {
		s.meanX += p.x
		s.meanY += p.y
	}
	s.meanX /= n
	s.meanY /= n
	for _, p := range points {
		dx, dy := p.x-s.meanX, p.y-s.meanY
		s.xx += float64(dx * dx)
		s.xy += float64(dx * dy)
		s.yy += float64(dy * dy)
	}
	return s
}

func (l *line) trend() Trend {
	if l.broken || l.n == 0 {
		return Trend{}
	}
	n := l.cut()
	b := l.buckets[:n]
	tr := Trend{N: n, Span: b[0].last - b[n-1].first}
	if n < MinPoints || tr.Span < MinSpan {
		return tr
	}
	var room [maxBucket]xy
	points := room[:n] // each bucket's mean, in seconds and bytes
	for i := range b {
		n := float64(b[i].n)
		points[i] = xy{b[i].sumAt.Seconds() / n, b[i].sum / n}
	}
	s := squaresOf(points)
	if s.xx == 0 {
		return tr
	}
	tr.Known, tr.Slope = true, s.xy/s.xx
	var rest, pairs, before float64
	for _, p := range points {
		e := p.y - s.meanY - float64(tr.Slope*(p.x-s.meanX))
		rest += float64(e * e)
		pairs += float64(e * before)
		before = e
	}
	if rest <= 0 {
		return tr
	}
	tr.Error = math.Sqrt(rest / float64(n-2) / s.xx)
	// Residuals of which each resembles the next are worth fewer points: n (1 − r) / (1 + r) of them for a first-order
	// process of correlation r. In a window as short as these, r comes out too low by about (1 + 4 r) / n.
	if r := pairs / rest; r > 0 {
		r = min(r+(1+float64(4*r))/float64(n), maxCorrelation)
		tr.Error *= math.Sqrt((1 + r) / (1 - r))
	}
	return tr
}

// maxCorrelation bounds what a few points can say about their own likeness: the error grows at most sixfold.
const maxCorrelation = 0.95

// cut returns how many of the newest buckets lie after the last gap that is too long to bridge.
func (l *line) cut() int {
	n := l.n
	for again := true; again; {
		again = false
		span := l.buckets[0].last - l.buckets[n-1].first
		for i := 1; i < n; i++ {
			if gap := l.buckets[i-1].first - l.buckets[i].last; gap > 2*l.width && float64(gap) > maxGap*float64(span) {
				n, again = i, true
				break
			}
		}
	}
	return n
}
