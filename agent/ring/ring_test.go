package ring

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
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

// The memory of a ring is there when New returns. It is the first test: later the heap has touched memory of its own.
func TestMemoryIsTouched(t *testing.T) {
	r := New(1<<20, 3) // 24 MiB, which the heap of a test process has not lying about
	if r.Bytes() != 24<<20 {
		t.Errorf("%d bytes", r.Bytes())
	}
	page := uintptr(os.Getpagesize())
	begin := (uintptr(unsafe.Pointer(&r.words[0])) + page - 1) / page * page
	skip := begin - uintptr(unsafe.Pointer(&r.words[0]))
	whole := (uintptr(r.Bytes()) - skip) / page * page
	block := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(&r.words[0]), skip)), whole)
	resident := make([]byte, whole/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&block[0])), whole, uintptr(unsafe.Pointer(&resident[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for i, b := range resident {
		if b&1 == 0 {
			t.Fatalf("page %d of %d is not resident", i, len(resident))
		}
	}
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

// TestNoTornRead races one fast writer against readers of a small ring; every record carries a checksum. The shapes are
// those in use, cut in length: a newest record, a history point, a pod, a node.
func TestNoTornRead(t *testing.T) {
	for _, tc := range []struct {
		name         string
		slots, width int
		space        int // records that a reader asks for
	}{
		{"newest of two", 2, 7, 1},
		{"history", 16, 3, 16},
		{"pod", 8, 7, 8},
		{"node, a part of it", 32, 12, 5},
		{"one slot", 1, 4, 1},
	} {
		t.Run(tc.name, func(t *testing.T) { race(t, tc.slots, tc.width, tc.space) })
	}
}

func race(t *testing.T, slots, width, space int) {
	const least, records = 100, 100_000
	r := New(slots, width)
	var reads [3]atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range reads {
		wg.Go(func() {
			dst := make([]uint64, space*width)
			for {
				select {
				case <-done:
					return
				default:
				}
				n := r.ReadInto(dst)
				reads[i].Add(int64(n))
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
			}
		})
	}
	starved := func() bool {
		for i := range reads {
			if reads[i].Load() < least {
				return true
			}
		}
		return false
	}
	// Until each reader got some: on a busy machine one may first run when all records are written.
	for n := uint64(0); n < records || starved() && !t.Failed(); n++ {
		r.Append(record(n, uint64(width)))
		if n > records {
			runtime.Gosched()
		}
	}
	close(done)
	wg.Wait()
}

// What a reader drops is what the writer has begun to overwrite, and nothing else.
func TestDropsWhatIsBeingWritten(t *testing.T) {
	for _, tc := range []struct {
		name  string
		begun uint64 // records begun while the copy was made, beyond the complete ones
		space int
		want  []uint64
	}{
		{"writer at rest", 0, 4, []uint64{6, 7, 8, 9}},
		{"one record begun", 1, 4, []uint64{7, 8, 9}},
		{"one record begun, not asked for", 1, 3, []uint64{7, 8, 9}},
		{"three begun", 3, 4, []uint64{9}},
		{"all overwritten", 4, 4, nil},
		{"more than all", 9, 2, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := New(4, 2)
			for n := range uint64(10) {
				r.Append([]uint64{n, n})
			}
			r.begun.Add(tc.begun)
			dst := make([]uint64, tc.space*2)
			got := r.ReadInto(dst)
			if got != len(tc.want) {
				t.Fatalf("%d records, want %d", got, len(tc.want))
			}
			for i, n := range tc.want {
				if dst[i*2] != n || dst[i*2+1] != n {
					t.Errorf("record %d is %v, want that of %d", i, dst[i*2:i*2+2], n)
				}
			}
		})
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
