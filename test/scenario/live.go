package scenario

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// live prints what happens while it happens.
type live struct {
	w    io.Writer
	full int64 // margin that fills the bar, bytes

	mu  sync.Mutex // guards due and the order of lines
	due time.Duration
}

// margin prints a bar once a second.
func (l *live) margin(p Point) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.At < l.due {
		return
	}
	l.due = p.At.Truncate(time.Second) + time.Second
	const width = 40
	filled := min(width, max(0, int(float64(width)*float64(p.Margin)/float64(l.full))))
	note := ""
	if p.Margin < 0 {
		note = "  under the kubelet's threshold"
	}
	fmt.Fprintf(l.w, "%7.1f s  margin %6d MiB |%s%s|%s\n", p.At.Seconds(), p.Margin>>20, strings.Repeat("#", filled), strings.Repeat(" ", width-filled), note)
}

// fate prints what became of a pod.
func (l *live) fate(f Fate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case f.Gone > 0 && f.API:
		fmt.Fprintf(l.w, "%7.1f s  %s is gone\n", f.Gone.Seconds(), f.Pod)
	case f.API:
		fmt.Fprintf(l.w, "%7.1f s  evicted through the API: %s\n", f.At.Seconds(), f.Pod)
	case f.Kubelet:
		fmt.Fprintf(l.w, "%7.1f s  evicted by the kubelet: %s\n", f.At.Seconds(), f.Pod)
	case f.OOMKilled:
		fmt.Fprintf(l.w, "%7.1f s  OOM kill in %s\n", f.At.Seconds(), f.Pod)
	}
}
