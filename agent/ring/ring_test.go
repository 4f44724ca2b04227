package ring

import (
	"sync"
	"testing"
)

func record(n, width uint64) []uint64 {
	rec := make([]uint64, width)
	sum := uint64(0)
	for i := range rec[:width-1] {
		rec[i] = n*1_000_003 + uint64(i)
		sum ^= rec[i]
	}
	rec[width-1] = sum
	return rec
}

func TestReadIntoReturnsNewestInOrder(t *testing.T) {
	for _, tc := range []struct {
		name                   string
		slots, appended, space int
		want                   []uint64
	}{
		{"empty", 4, 0, 4, nil},
		{"partly filled", 4, 2, 4, []uint64{0, 1}},
		{"exactly full", 4, 4, 4, []uint64{0, 1, 2, 3}},
		{"wrapped", 4, 7, 4, []uint64{3, 4, 5, 6}},
		{"less space than records", 4, 7, 2, []uint64{5, 6}},
		{"more space than slots", 4, 7, 9, []uint64{3, 4, 5, 6}},
		{"no space", 4, 7, 0, nil},
		{"one slot", 1, 3, 4, []uint64{2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := New(tc.slots, 3)
			for n := range tc.appended {
				r.Append([]uint64{uint64(n), uint64(n) + 100, uint64(n) + 200})
			}
			dst := make([]uint64, tc.space*3)
			got := r.ReadInto(dst)
			if got != len(tc.want) {
				t.Fatalf("got %d records, want %d", got, len(tc.want))
			}
			for i, n := range tc.want {
				if rec := dst[i*3 : i*3+3]; rec[0] != n || rec[1] != n+100 || rec[2] != n+200 {
					t.Errorf("record %d is %v, want the one of %d", i, rec, n)
				}
			}
		})
	}
}

// TestNoTornRead races one fast writer against readers of a small ring; every record carries a checksum.
func TestNoTornRead(t *testing.T) {
	const slots, width, records = 8, 6, 200_000
	r := New(slots, width)
	done := make(chan struct{})
	var wg sync.WaitGroup
	reads := make([]int, 4)
	for i := range reads {
		wg.Go(func() {
			dst := make([]uint64, slots*width)
			for {
				n := r.ReadInto(dst)
				reads[i] += n
				for k := range n {
					rec := dst[k*width : (k+1)*width]
					sum := uint64(0)
					for _, w := range rec[:width-1] {
						sum ^= w
					}
					if sum != rec[width-1] {
						t.Errorf("torn record %v", rec)
						return
					}
					if k > 0 && rec[0] != dst[(k-1)*width]+1_000_003 {
						t.Errorf("records not consecutive: %d after %d", rec[0], dst[(k-1)*width])
						return
					}
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for n := range uint64(records) {
		r.Append(record(n, width))
	}
	close(done)
	wg.Wait()
	for i, n := range reads {
		if n == 0 {
			t.Errorf("reader %d never got a record", i)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	r := New(64, 8)
	rec, dst := make([]uint64, 8), make([]uint64, 64*8)
	if n := testing.AllocsPerRun(1000, func() { r.Append(rec); r.ReadInto(dst) }); n != 0 {
		t.Errorf("%v allocations per append and read, want 0", n)
	}
}

func BenchmarkAppend(b *testing.B) {
	r, rec := New(128, 12), make([]uint64, 12)
	b.ReportAllocs()
	for b.Loop() {
		r.Append(rec)
	}
}

func BenchmarkReadWindow(b *testing.B) {
	r, rec := New(128, 12), make([]uint64, 12)
	for range 128 {
		r.Append(rec)
	}
	dst := make([]uint64, 100*12)
	b.ReportAllocs()
	for b.Loop() {
		r.ReadInto(dst)
	}
}
