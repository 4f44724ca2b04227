package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// begin opens the ledger in dir until the test ends.
func begin(t testing.TB, opts Options) *Ledger {
	t.Helper()
	l, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

// life runs f on the ledger in dir, with Run beside it.
func life(t *testing.T, opts Options, f func(l *Ledger)) {
	t.Helper()
	l, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	for !l.running.Load() {
		runtime.Gosched()
	}
	f(l)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func save(t testing.TB, l *Ledger, name, text string) {
	t.Helper()
	if err := l.Document(name).Save([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, l *Ledger, name, text string) {
	t.Helper()
	data, lost, err := l.Document(name).Load()
	if err != nil || lost != "" || string(data) != text || (data == nil) != (text == "") {
		t.Errorf("%s: %q, lost %q, %v; want %q", name, data, lost, err, text)
	}
}

func TestDocuments(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := filepath.Join(t.TempDir(), "state")
	long := strings.Repeat("x", 300_000)
	life(t, Options{Dir: dir}, func(l *Ledger) {
		want(t, l, "a", "")
		save(t, l, "a", "1")
		save(t, l, "b", long)
		save(t, l, "a", "2")
		want(t, l, "a", "2")
		if err := l.Document("a").Save(make([]byte, maxDocument+1)); err == nil || !strings.Contains(err.Error(), "a has 4194305 bytes") {
			t.Errorf("too long: %v", err)
		}
	})
	for name, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, FileName): 0o600} {
		if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left beside it: %v, %v", left, err)
	}
	life(t, Options{Dir: dir}, func(l *Ledger) {
		want(t, l, "a", "2")
		want(t, l, "b", long)
		if l.SetAside() != "" || l.Fault() != "" || l.Stats().Size < 300_000 {
			t.Errorf("set aside %q, fault %q, %+v", l.SetAside(), l.Fault(), l.Stats())
		}
	})
	l := begin(t, Options{Dir: dir})
	l.Close()
	if err := l.Document("a").Save([]byte("3")); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestOneProcessHasIt(t *testing.T) {
	dir := t.TempDir()
	begin(t, Options{Dir: dir})
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), filepath.Join(dir, FileName)) {
		t.Errorf("%v, want ErrLocked and the file", err)
	}
	if _, err := Open(Options{}); err == nil {
		t.Error("no folder: no error")
	}
}

// What its owner cannot use is moved to a file.
func TestSetDocumentAside(t *testing.T) {
	dir := t.TempDir()
	l := begin(t, Options{Dir: dir})
	save(t, l, "a", "nonsense")
	name, err := l.Document("a").SetAside()
	if got, rerr := os.ReadFile(name); err != nil || rerr != nil || string(got) != "nonsense" || !strings.HasPrefix(name, filepath.Join(dir, "a.bad-")) {
		t.Errorf("%q, %q, %v, %v", name, got, err, rerr)
	}
	want(t, l, "a", "")
	l.Close()
	want(t, begin(t, Options{Dir: dir}), "a", "")
}

// Many save at a time: those that come during a commit share the next one, so that nobody waits for more than two.
func TestSavesShareCommits(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	const many = 50
	life(t, Options{Dir: dir}, func(l *Ledger) {
		save(t, l, "first", "1")
		l.mu.Lock() // the disk is slow: the commit under way waits here
		before := l.commits
		var come, wg sync.WaitGroup
		come.Add(many)
		for i := range many {
			wg.Go(func() {
				come.Done()
				save(t, l, fmt.Sprintf("d%02d", i), "x")
			})
		}
		come.Wait()
		l.mu.Unlock()
		wg.Wait()
		if n := l.commits - before; n < 1 || n >= many {
			t.Errorf("%d commits for %d documents", n, many)
		}
	})
	l := begin(t, Options{Dir: dir})
	for i := range many {
		want(t, l, fmt.Sprintf("d%02d", i), "x")
	}
}

// A disk that hangs fails the save in bounded time, and the agent goes on when it works again.
func TestDiskHangs(t *testing.T) {
	life(t, Options{Dir: t.TempDir()}, func(l *Ledger) {
		save(t, l, "a", "1")
		l.wait = 30 * time.Millisecond
		l.mu.Lock()
		if err := l.Document("a").Save([]byte("2")); err == nil || !strings.Contains(err.Error(), FileName) || l.Fault() == "" {
			t.Errorf("%v, fault %q", err, l.Fault())
		}
		if err := l.Document("a").Save([]byte("3")); err == nil {
			t.Error("the second: no error")
		}
		l.wait = saveWait
		l.mu.Unlock()
		save(t, l, "a", "4")
		want(t, l, "a", "4")
		if l.Fault() != "" || l.Stats().WriteErrors != 2 {
			t.Errorf("fault %q, %+v", l.Fault(), l.Stats())
		}
	})
}

// Half of a large file is of no use any more: it is written anew when it is opened, and is smaller.
func TestCompaction(t *testing.T) {
	dir := t.TempDir()
	l := begin(t, Options{Dir: dir})
	for i := range 4 {
		save(t, l, fmt.Sprint(i), strings.Repeat("z", 2<<20))
	}
	for i := range 4 {
		save(t, l, fmt.Sprint(i), "small")
	}
	if err := l.commit(nil, []queued{{log: "kills", at: time.Unix(1, 0), data: []byte("k")}, {log: "kills", at: time.Unix(2, 0), data: []byte("l")}}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	before := l.Stats().Size
	l = begin(t, Options{Dir: dir})
	if after := l.Stats().Size; before < 8<<20 || after > 1<<20 {
		t.Errorf("%d bytes before, %d after", before, after)
	}
	for i := range 4 {
		want(t, l, fmt.Sprint(i), "small")
	}
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("the new file is not locked: %v", err)
	}
	g, err := l.Log("kills", Bounds{10, 1 << 20, 100 * 365 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.commit(nil, []queued{{log: "kills", at: time.Unix(3, 0), data: []byte("m")}}); err != nil {
		t.Fatal(err)
	}
	got, err := g.Newest(9)
	ids := []uint64{}
	for _, r := range got {
		ids = append(ids, r.ID)
	}
	if err != nil || !slices.Equal(ids, []uint64{3, 2, 1}) {
		t.Errorf("%+v, %v", got, err)
	}
}
