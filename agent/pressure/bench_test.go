package pressure

import (
	"testing"
	"time"
)

// BenchmarkAssess judges a node that is read every 20 ms: 600 samples in the ring, as under pressure.
func BenchmarkAssess(b *testing.B) {
	var samples []Sample
	tr := trace{load: func(s float64) load {
		return load{pods: leftAt(1500) - 1000 + ramp(s, 0, 1e9, 50), podCache: ramp(s, 5, 9, 10), outside: 1000}
	}}
	for at := time.Duration(0); at < testKeep; at += 20 * time.Millisecond {
		samples = append(samples, tr.sample(time.Hour+at, tr.load(at.Seconds()), 0))
	}
	in := input(samples)
	in.Thresholds = append(in.Thresholds, Threshold{Signal: MemoryAvailable, Bytes: testGiB, Grace: time.Minute}, Threshold{Signal: AllocatableAvailable, Hard: true, Bytes: 100 << 20})
	in.Growers = []Grower{{Slope: 1e6, Room: testGiB}, {Slope: 2e6, Room: 2 * testGiB}}
	_, mem := Assess(in, Memory{})
	b.ReportAllocs()
	for b.Loop() {
		Assess(in, mem)
	}
}

// BenchmarkFit is one pod's growth over ten seconds.
func BenchmarkFit(b *testing.B) {
	points := make([]Point, 500)
	for i := range points {
		points[i] = Point{At: time.Hour + time.Duration(i)*20*time.Millisecond, Value: testGiB + Bytes(i)*4096}
	}
	b.ReportAllocs()
	for b.Loop() {
		Fit(points, LongWindow)
	}
}
