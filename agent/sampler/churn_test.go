package sampler

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"weak"
)

// TestChurn makes and removes 2,000 cgroups under Track while the sampler runs at its fastest. What is gone leaves no
// file, no ring and no goroutine behind.
func TestChurn(t *testing.T) {
	const rounds, pods = 40, 25 // with a container each
	n := newNode(t)
	n.mkdir("kubepods")
	s := newSampler(t, n, Options{Fastest: 10 * time.Millisecond, Slowest: 10 * time.Millisecond})
	stop := run(t, s)
	defer stop()
	sweep := func() {
		for range 3 { // one may lie there, and another be of a sweep that began before
			<-s.Ticks()
		}
	}
	sweep()
	files := openFiles(t)
	var seen []weak.Pointer[Series]
	var followed, read int
	for round := range rounds {
		targets := make([]Target, 0, pods)
		var names []string
		for i := range pods {
			name := fmt.Sprintf("kubepods/pod%d-%d", round, i)
			target, leaf := n.mkdir(name), n.mkdir(name+"/c")
			target.Leaves = []Leaf{{Path: leaf.Path, ID: leaf.ID, Key: "c"}}
			targets = append(targets, target)
			names = append(names, name+"/c", name)
		}
		s.Track(targets)
		sweep()
		for _, series := range s.Series() {
			seen = append(seen, weak.Make(series))
			followed++
			if len(window(series, 1)) == 1 {
				read++
			}
		}
		for i, name := range names {
			n.rmdir(name)
			if i == len(names)/2 && round%2 == 0 { // the targets change before or after the cgroups are gone
				s.Track(nil)
			}
		}
		if round%4 == 0 {
			sweep()
		}
	}
	s.Track(nil)
	sweep()
	if followed != rounds*pods || read < followed*9/10 {
		t.Errorf("of %d pods %d were followed and %d read", rounds*pods, followed, read)
	}
	if now := openFiles(t); now != files {
		t.Errorf("%d files open, %d before", now, files)
	}
	runtime.GC()
	kept := 0
	for _, p := range seen {
		if p.Value() != nil {
			kept++
		}
	}
	if kept > 0 {
		t.Errorf("%d of %d series were not released", kept, len(seen))
	}
	if h := s.Health(); h.Errors != 0 {
		t.Errorf("%+v", h)
	}
	stop()
}

// A cgroup that is made again under the same key goes on with the history, and with nothing else: its slopes are its own.
func TestHistoryOutlivesTheCgroup(t *testing.T) {
	n := newNode(t)
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	points := func(x *Series) int {
		got, _ := x.History(make([]HistoryPoint, 10), nil)
		return len(got)
	}
	first := n.mkdir("pod")
	s.Track([]Target{first})
	swept(s)
	old := s.Series()[0]
	old.history.flush() // the sweep's reading becomes a point
	if points(old) != 1 {
		t.Fatalf("%d points", points(old))
	}
	n.rmdir("pod")
	swept(s)
	second := n.mkdir("pod")
	if second.ID == first.ID {
		t.Skip("this kernel gave the same inode number again") // kernels before 5.5 may
	}
	s.Track([]Target{second})
	swept(s)
	heir := s.Series()[0]
	if heir == old || points(heir) != 1 || len(window(heir, 10)) != 1 {
		t.Errorf("%d points and %d samples, want the point of before and one sample", points(heir), len(window(heir, 10)))
	}
	if !old.Gone() || len(window(old, 10)) != 1 {
		t.Error("the old series must stay readable, and gone")
	}
	other := second
	other.Key = "another"
	s.Track([]Target{other})
	swept(s)
	if points(s.Series()[0]) != 0 {
		t.Error("another key inherits nothing")
	}
	// One that was not followed for a while is not remembered.
	s.Track(nil)
	swept(s)
	s.Track([]Target{second})
	swept(s)
	if points(s.Series()[0]) != 0 {
		t.Error("a history without a series was kept")
	}
}
