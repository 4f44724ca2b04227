package recording

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"spillway/agent/judge"
	"spillway/agent/pressure"
)

// BenchmarkSecond is what a second under pressure costs the loop on a node of 110 pods: 50 looks and 10 rankings of
// pods of which each has a new reading. It is on top of what judging costs.
func BenchmarkSecond(b *testing.B) {
	w, err := NewWriter(Options{Path: filepath.Join(b.TempDir(), "recording.gz"), MaxBytes: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	j := judge.New(config())
	pods := judge.Pods{Now: begin}
	for i := range 110 {
		pods.Pods = append(pods.Pods, testPod(fmt.Sprintf("p%d", i), uint64(i)*mib, float64(i)))
	}
	l := judge.Look{Thresholds: []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true, Bytes: 100 * mib}}, Allocatable: 8 * gib}
	l.Samples = []pressure.Sample{{At: time.Hour, Capacity: 8 * gib, RootWorkingSet: 4 * gib, PodsWorkingSet: 3 * gib, PodsLimit: 8 * gib, MemAvailable: 4 * gib}}
	ranking, verdict := j.Read(pods), j.Assess(l)
	w.Begin(begin, j.State())
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		for i := range 50 {
			if !w.Open() {
				w.Begin(begin, j.State())
			}
			l.Samples[0].At += 20 * time.Millisecond
			w.Look(begin, &l, verdict)
			if i%5 == 0 {
				for k := range pods.Pods {
					pods.Pods[k].Reading.Usage = uint64(n*7919+i*k) << 12
				}
				w.Read(&pods, ranking)
			}
		}
	}
	b.StopTimer()
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(w.Stats().Bytes)/float64(b.N), "file-B/op")
}
