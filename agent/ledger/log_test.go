package ledger

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

func logOf(t testing.TB, l *Ledger, name string, b Bounds) *Log {
	t.Helper()
	g, err := l.Log(name, b)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func newest(t testing.TB, g *Log, n int) []Record {
	t.Helper()
	out, err := g.Newest(n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLog(t *testing.T) {
	dir := t.TempDir()
	bounds := Bounds{Records: 100, Bytes: 1 << 20, Age: time.Hour}
	now := time.Now()
	life(t, Options{Dir: dir}, func(l *Ledger) {
		g, other := logOf(t, l, "kills", bounds), logOf(t, l, "other", bounds)
		if got := newest(t, g, 5); len(got) != 0 {
			t.Errorf("an empty log has %v", got)
		}
		for i := range 10 {
			if !g.Append(now.Add(time.Duration(i)), []byte(fmt.Sprint(i)), nil) {
				t.Fatal("not appended")
			}
		}
		other.Append(now, nil, nil)
		save(t, l, "a", "after them") // and so they are there
		got := newest(t, g, 3)
		if len(got) != 3 || got[0].ID != 10 || string(got[0].Data) != "9" || !got[0].At.Equal(now.Add(9)) || got[2].ID != 8 {
			t.Errorf("newest %+v", got)
		}
		if r, ok, err := g.Get(4); !ok || err != nil || string(r.Data) != "3" {
			t.Errorf("%+v, %v, %v", r, ok, err)
		}
		if r, ok, err := g.Get(11); ok || err != nil {
			t.Errorf("%+v, %v, %v", r, ok, err)
		}
		if got := newest(t, other, 9); len(got) != 1 || len(got[0].Data) != 0 || got[0].ID != 1 {
			t.Errorf("the other log has %+v", got)
		}
		if g.Append(now, make([]byte, maxRecord+1), nil) || l.Stats().Dropped != 1 {
			t.Errorf("a long record: %+v", l.Stats())
		}
	})
	life(t, Options{Dir: dir}, func(l *Ledger) {
		g := logOf(t, l, "kills", bounds)
		g.Append(now, []byte("next"), nil)
		save(t, l, "a", "x")
		if got := newest(t, g, 99); len(got) != 11 || got[0].ID != 11 {
			t.Errorf("after a restart %+v", got)
		}
	})
}

// Without any document saved a record is on disk within a second.
func TestRecordsAreWrittenSoon(t *testing.T) {
	life(t, Options{Dir: t.TempDir()}, func(l *Ledger) {
		g := logOf(t, l, "kills", Bounds{10, 1 << 20, time.Hour})
		began := time.Now()
		g.Append(began, []byte("k"), nil)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for len(newest(t, g, 1)) == 0 {
			if <-tick.C; time.Since(began) > time.Second {
				t.Fatal("not on disk after a second")
			}
		}
	})
}

func TestLogBounds(t *testing.T) {
	now := time.Now()
	l := begin(t, Options{Dir: t.TempDir()})
	few := logOf(t, l, "few", Bounds{3, 1 << 20, 24 * time.Hour})
	small := logOf(t, l, "small", Bounds{1000, 1000, 24 * time.Hour})
	young := logOf(t, l, "young", Bounds{1000, 1 << 20, time.Hour})
	var in []queued
	for i := range 10 {
		at := now.Add(time.Duration(i-9) * 30 * time.Minute)
		for _, name := range []string{"few", "small", "young"} {
			in = append(in, queued{log: name, at: at, data: make([]byte, 180)})
		}
	}
	if err := l.commit(nil, in); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		log *Log
		n   int
	}{{few, 3}, {small, 5}, {young, 2}} {
		got := newest(t, tc.log, 99)
		if len(got) != tc.n || got[0].ID != 10 || got[len(got)-1].ID != uint64(11-tc.n) {
			t.Errorf("%s: %d records", tc.log.name, len(got))
		}
	}
	// All of them go, and the next ID is a new one; after a restart too.
	l.logs["few"].bounds.Age = time.Nanosecond
	if err := l.commit(nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := newest(t, few, 9); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	l.Close()
	l = begin(t, Options{Dir: l.opts.Dir})
	few = logOf(t, l, "few", Bounds{3, 1 << 20, 24 * time.Hour})
	if err := l.commit(nil, []queued{{log: "few", at: now, data: nil}}); err != nil {
		t.Fatal(err)
	}
	if got := newest(t, few, 9); len(got) != 1 || got[0].ID != 11 {
		t.Errorf("%+v", got)
	}
	for name, b := range map[string]Bounds{"few": {1, 1, 1}, "": {1, 1, 1}, "no records": {0, 1, 1}, "no bytes": {1, 0, 1}, "no age": {1, 1, 0}, "too many bytes": {1, maxLogs, 1}} {
		if _, err := l.Log(name, b); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
}

// However much is written, the file stays small, and the counters agree with what is in it.
func TestSizeIsBounded(t *testing.T) {
	l := begin(t, Options{Dir: t.TempDir()})
	const bytes = 1 << 20
	logOf(t, l, "kills", Bounds{100_000, bytes, time.Hour})
	r := rand.New(rand.NewPCG(1, 2))
	most := int64(0)
	for i := range 120 {
		var in []queued
		for range 100 {
			in = append(in, queued{log: "kills", at: time.Now(), data: make([]byte, 50+r.IntN(1000))})
		}
		if err := l.commit([]*put{{name: "a", data: make([]byte, r.IntN(100_000))}}, in); err != nil {
			t.Fatal(err)
		}
		if most = max(most, l.Stats().Size); i%40 == 39 {
			kept := l.tallies["kills"]
			if kept.bytes > bytes || kept.bytes < bytes-2000 {
				t.Errorf("%d bytes kept", kept.bytes)
			}
			l.Close()
			again := begin(t, Options{Dir: l.opts.Dir})
			if got := again.tallies["kills"]; got != kept {
				t.Errorf("counted %+v, on disk %+v", kept, got)
			}
			again.logs, l = l.logs, again
		}
	}
	t.Logf("%d bytes for a log of %d and a document of 100 kB", most, bytes)
	if most > 4*bytes {
		t.Errorf("the file grew to %d bytes", most)
	}
}

// The queue takes no more than it has room for, and Append never waits.
func TestQueueIsBounded(t *testing.T) {
	l := begin(t, Options{Dir: t.TempDir()})
	g := logOf(t, l, "kills", Bounds{10_000, 1 << 20, time.Hour})
	taken := 0
	for range queueRecords + 10 { // Run does not run
		if g.Append(time.Now(), nil, nil) {
			taken++
		}
	}
	if taken != queueRecords || l.Stats().Dropped != 10 {
		t.Errorf("%d taken, %+v", taken, l.Stats())
	}
}

// What was confirmed has its ID and is on disk; what was given up is said to be.
func TestAppend(t *testing.T) {
	dir := t.TempDir()
	var told []uint64
	life(t, Options{Dir: dir}, func(l *Ledger) {
		g := logOf(t, l, "events", Bounds{100, 1 << 20, 100 * 365 * 24 * time.Hour})
		done := make(chan error, 1)
		for i := range 5 {
			var id uint64
			if !g.Append(time.Unix(int64(i), 0), []byte{byte(i)}, func(n uint64, err error) { id = n; done <- err }) {
				t.Fatal("dropped")
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if r, ok, err := g.Get(id); !ok || err != nil || r.Data[0] != byte(i) {
				t.Fatalf("record %d: %v, %v, %v", id, r, ok, err)
			}
			told = append(told, id)
		}
		for from := range 6 {
			after := uint64(0)
			if from > 0 {
				after = told[from-1]
			}
			got, err := g.After(after, 3)
			if err != nil || len(got) != min(3, 5-from) {
				t.Fatalf("after %d: %v, %v", after, got, err)
			}
			for i := range got {
				if got[i].ID != told[from+i] {
					t.Errorf("after %d: %v", after, got)
				}
			}
		}
	})
	l := begin(t, Options{Dir: dir})
	g := logOf(t, l, "events", Bounds{100, 1 << 20, 100 * 365 * 24 * time.Hour})
	var err error
	if !g.Append(time.Now(), nil, func(_ uint64, e error) { err = e }) {
		t.Fatal("dropped")
	}
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if rerr := l.Run(ctx); rerr != nil || err == nil || l.Stats().Dropped != 1 {
		t.Errorf("run: %v; told %v; %+v", rerr, err, l.Stats())
	}
	if g.Append(time.Now(), make([]byte, maxRecord+1), func(uint64, error) { t.Error("told of what was refused") }) {
		t.Error("a record that is too large is taken")
	}
}
