package scenario

import (
	"context"
	"time"

	"spillway/test/cluster"
	"spillway/test/vm"
)

// meter reads the margin from the kernel, apart from the product's own readers.
type meter struct {
	node   cluster.Node
	every  time.Duration
	hard   int64
	since  func() time.Duration
	points []Point
	each   func(Point) // called for every point; nil: nobody looks
	err    error
}

func (m *meter) run(ctx context.Context) {
	m.err = m.node.WatchMemory(ctx, m.every, func(s vm.MemorySample) {
		p := Point{m.since(), s.Available() - m.hard}
		m.points = append(m.points, p)
		if m.each != nil {
			m.each(p)
		}
	})
}

func summarize(points []Point) (start, lowest int64, under time.Duration) {
	if len(points) == 0 {
		return 0, 0, 0
	}
	start, lowest = points[0].Margin, points[0].Margin
	for i, p := range points {
		lowest = min(lowest, p.Margin)
		if i > 0 && points[i-1].Margin < 0 {
			under += p.At - points[i-1].At
		}
	}
	return start, lowest, under
}
