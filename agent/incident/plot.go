package incident

import (
	"fmt"
	"math"
	"strings"
	"time"

	"spillway/agent/status"
)

// plotWidth is how many columns a plot has.
const plotWidth = 60

var bars = []rune("▁▂▃▄▅▆▇█")

// plots draws the margin and the memory of the pods over one axis of time.
func (s *story) plots() {
	from, to := span(s.i)
	if to <= from {
		return
	}
	mark := int((0 - from) * int64(plotWidth-1) / (to - from))
	axis := func() {
		left := time.Duration(from) * time.Millisecond
		right := time.Duration(to) * time.Millisecond
		if mark >= 0 && mark < plotWidth {
			fmt.Fprintf(s, "%s^ %s\n", strings.Repeat(" ", mark), s.clock(s.i.Began))
		}
		if until := right.Seconds(); until < 0.5 {
			fmt.Fprintf(s, "from %.0f s before it until it\n", -left.Seconds())
		} else {
			fmt.Fprintf(s, "from %.0f s before it to %.0f s after it\n", -left.Seconds(), until)
		}
	}
	drawn := false
	draw := func(title string, series *Series, column string) {
		line, low, high, ok := plot(series.At, series.Column(column), from, to)
		if !ok {
			return
		}
		fmt.Fprintf(s, "\n%s: %s to %s\n%s\n", title, status.Size(low*1024), status.Size(high*1024), line)
		drawn = true
	}
	draw("margin of the node", &s.i.Series, "margin")
	for n := range s.i.Pods {
		p := &s.i.Pods[n]
		draw("working set of "+status.Clean(p.Subject.String()), &p.Series, "workingSet")
	}
	if drawn {
		axis()
	}
}

// span is the time that all series reach over, in milliseconds.
func span(i *Incident) (from, to int64) {
	from, to = math.MaxInt64, math.MinInt64
	take := func(at []int64) {
		if len(at) > 0 {
			from, to = min(from, at[0]), max(to, at[len(at)-1])
		}
	}
	take(i.Series.At)
	for n := range i.Pods {
		take(i.Pods[n].Series.At)
	}
	if from > to {
		return 0, 0
	}
	return from, to
}

// plot draws values as bars between their lowest and their highest. A column without a reading in its time is blank.
func plot(at []int64, values []Value, from, to int64) (line string, low, high float64, ok bool) {
	sums, counts := make([]float64, plotWidth), make([]int, plotWidth)
	low, high = math.Inf(1), math.Inf(-1)
	for i, v := range values {
		if v == None {
			continue
		}
		low, high = min(low, float64(v)), max(high, float64(v))
		c := int(float64(at[i]-from) / float64(to-from) * (plotWidth - 1))
		if c >= 0 && c < plotWidth {
			sums[c] += float64(v)
			counts[c]++
			ok = true
		}
	}
	if !ok {
		return "", 0, 0, false
	}
	out := make([]rune, plotWidth)
	for c := range out {
		if counts[c] == 0 {
			out[c] = ' '
			continue
		}
		level := 0
		if high > low {
			level = int(math.Round((sums[c]/float64(counts[c]) - low) / (high - low) * float64(len(bars)-1)))
		}
		out[c] = bars[min(max(level, 0), len(bars)-1)]
	}
	return strings.TrimRight(string(out), " "), low, high, true
}
