package kube

import (
	"log/slog"
	"sync"
	"time"
)

// faultLog writes a repeating fault when its text changes and once a minute, and its end once.
type faultLog struct {
	log  *slog.Logger
	what string // what fails: the message of every line

	mu      sync.Mutex // guards all below
	last    string     // "" when there is no fault
	since   time.Time
	written time.Time
	unsaid  int // repeats since the last line
}

func (f *faultLog) fault(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.last == "" {
		f.since = now
	}
	f.unsaid++
	if f.last == err.Error() && now.Sub(f.written) < time.Minute {
		return
	}
	f.log.Warn(f.what, "err", err, "times", f.unsaid, "for", now.Sub(f.since).Round(time.Millisecond))
	f.last, f.written, f.unsaid = err.Error(), now, 0
}

func (f *faultLog) ok() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == "" {
		return
	}
	f.log.Info(f.what+": over", "after", time.Since(f.since).Round(time.Millisecond), "last", f.last)
	f.last, f.unsaid = "", 0
}
