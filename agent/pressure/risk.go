package pressure

import (
	"time"

	"gonum.org/v1/gonum/stat"
)

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
	x, y := make([]float64, 0, len(points)), make([]float64, 0, len(points))
	for _, p := range points {
		if p.Value.Known() {
			x = append(x, p.At.Seconds())
			y = append(y, float64(p.Value))
		}
	}
	if len(x) < riskPoints || !capacity.Known() || capacity <= 0 {
		return Risk{}
	}
	span := time.Duration((x[len(x)-1] - x[0]) * float64(time.Second))
	if span < riskSpan {
		return Risk{}
	}
	// From the first point on, so that hours of uptime do not cost digits.
	first := x[0]
	for i := range x {
		x[i] -= first
	}
	alpha, beta := stat.LinearRegression(x, y, nil, false)
	r := Risk{Known: true, Slope: beta, Span: span, PercentPerHr: beta * 3600 / float64(capacity) * 100}
	if spread := stat.Variance(y, nil); spread > 0 {
		r.R2 = min(1, max(0, stat.RSquared(x, y, nil, alpha, beta)))
	}
	r.High = r.PercentPerHr > riskSlope && r.R2 > riskR2
	return r
}
