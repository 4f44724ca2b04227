package oomkill

import (
	"context"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"spillway/test/oomtest"
)

// TestBurst: 60 processes in four cgroups take memory at once; the kernel's log
// drops most reports of what comes faster than 10 in 5 s.
func TestBurst(t *testing.T) {
	oomtest.Alone(t) // the kernel's log is of little use to others meanwhile
	const groups, each = 4, 15
	tracer := openTracer(t, Options{})
	want := map[int]*memoryCgroup{}
	var children []*child
	for range groups {
		g := newMemoryCgroup(t)
		for range each {
			c := g.start(t, "alloc")
			want[c.Process.Pid] = g
			children = append(children, c)
		}
	}
	events := follow(t, tracer)

	start := time.Now()
	for _, c := range children {
		c.loose(t)
	}
	for _, c := range children {
		c.mustDie(t)
	}
	took := time.Since(start)

	seen := map[int]bool{}
	again := 0
	for len(seen) < len(children) {
		select {
		case e := <-events:
			pid := int(e.PID)
			g := want[pid]
			switch {
			case g == nil:
				t.Logf("event of another process: %+v", e)
			case seen[pid]:
				again++
			default:
				seen[pid] = true
				g.check(t, "victim", e.CgroupV1, e.CgroupV2)
				g.check(t, "trigger", e.TriggerCgroupV1, e.TriggerCgroupV2)
				if !e.KnownVictim || e.Comm != procName {
					t.Errorf("event %+v", e)
				}
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("events of %d of %d victims", len(seen), len(children))
		}
	}
	t.Logf("events of %d of %d victims that died within %v; %d marked again", len(seen), len(children), took, again)
	if lost, err := tracer.Lost(); lost != 0 || err != nil {
		t.Errorf("Lost: %d, %v", lost, err)
	}
}

// TestBufferFull: nobody reads, the buffer takes what fits, the rest is counted.
func TestBufferFull(t *testing.T) {
	size := os.Getpagesize()
	if size > 4096 {
		t.Skipf("a page of %d bytes takes too many kills to fill", size)
	}
	oomtest.Alone(t)
	tracer := openTracer(t, Options{BufferBytes: size})
	g := newMemoryCgroup(t)
	const kills = 30
	var pids []int
	for range kills {
		pids = append(pids, g.oomKill(t, "alloc"))
	}
	const record = 8 + (eventSize+7)/8*8 // with its header (kernel/bpf/ringbuf.c)
	lost, err := tracer.Lost()
	if err != nil {
		t.Fatal(err)
	}
	// The ring must not become full to the last byte, or it would look empty.
	fit := (size - 1) / record
	if want := uint64(kills - fit); lost < want {
		t.Errorf("Lost %d, want %d", lost, want)
	}
	events := follow(t, tracer)
	for _, pid := range pids[:kills-int(lost)] {
		next(t, events, pid)
	}
	pid := g.oomKill(t, "alloc")
	next(t, events, pid)
	if again, err := tracer.Lost(); again != lost || err != nil {
		t.Errorf("Lost %d, %v after the buffer was read, want %d", again, err, lost)
	}
}

// BenchmarkMarkToHandler measures from the kernel's time of the mark to the call
// of the handler: of one kill at a time, and of ten processes that die at once.
func BenchmarkMarkToHandler(b *testing.B) {
	for _, parallel := range []int{1, 10} {
		b.Run(strconv.Itoa(parallel)+" at once", func(b *testing.B) {
			tracer := openTracer(b, Options{})
			g := newMemoryCgroup(b)
			var latencies []time.Duration
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() {
				done <- tracer.Run(ctx, func(e *Event) {
					latencies = append(latencies, sinceBoot(b)-e.Time)
				})
			}()
			for left := b.N; left > 0; left -= parallel {
				var children []*child
				for range min(left, parallel) {
					children = append(children, g.start(b, "alloc"))
				}
				for _, c := range children {
					c.loose(b)
				}
				for _, c := range children {
					c.mustDie(b)
				}
			}
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			if len(latencies) < b.N {
				b.Fatalf("%d events of %d kills", len(latencies), b.N)
			}
			slices.Sort(latencies)
			for name, q := range map[string]int{"p50": 50, "p90": 90, "p99": 99, "max": 100} {
				at := latencies[min(len(latencies)*q/100, len(latencies)-1)]
				b.ReportMetric(float64(at.Microseconds()), name+"-us")
			}
			b.ReportMetric(0, "ns/op") // of the kill, not of the tracer
		})
	}
}
