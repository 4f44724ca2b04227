package pressure

import "time"

// When the history of a day speaks for a shortage to come.
const (
	// riskSlope is in percent of the node's memory per hour: half of the node in four days.
	riskSlope = 0.5
	riskR2    = 0.8
	// riskSpan is the shortest history that is judged: a start-up that fills its caches looks like a leak for minutes.
	riskSpan   = 30 * time.Minute
	riskPoints = 20
)

// Risk is what a straight line through the history says of memory that cannot be reclaimed.
type Risk struct {
	Known        bool // false: too little history; nothing else is set then
	High         bool // rises by more than 0.5 % of the node's memory per hour, and r2 is over 0.8
	Slope        float64
	R2           float64       // how much of the history the line explains, 0 to 1
	PercentPerHr float64       // Slope in percent of the node's memory per hour
	Span         time.Duration // of the history
}

// RiskOf fits a line to a history, oldest first: one value a minute, Unknown where there was no reading. capacity is the
// node's memory. Slope is in bytes per second.
//
// A history that does not begin before riskSpan, or with fewer than riskPoints values, is not judged; nor is one of a node
// whose size is unknown.
func RiskOf(points []Point, capacity Bytes) Risk {
	known := make([]xy, 0, len(points))
	var first, span time.Duration
	for _, p := range points {
		if !p.Value.Known() {
			continue
		}
		if len(known) == 0 {
			first = p.At
		}
		span = p.At - first // hours of uptime would cost digits
		known = append(known, xy{span.Seconds(), float64(p.Value)})
	}
	if len(known) < riskPoints || !capacity.Known() || capacity <= 0 || span < riskSpan {
		return Risk{}
	}
	s := squaresOf(known)
	r := Risk{Known: true, Slope: s.xy / s.xx, Span: span}
	r.PercentPerHr = r.Slope * 3600 / float64(capacity) * 100
	if s.yy > 0 {
		r.R2 = min(1, r.Slope*s.xy/s.yy)
	}
	r.High = r.PercentPerHr > riskSlope && r.R2 > riskR2
	return r
}
