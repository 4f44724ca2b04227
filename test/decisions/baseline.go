package main

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"os"
)

// A baseline is what the core of commit 0abab02 did in the same episodes: one line per episode. It holds for one generator and
// one model, and changed episodes are noticed by their hash; that of the recorded applications covers their curves too. After a
// change of generator, model or curves both are recorded like this, from the repository's root. adapter-0abab02.go.txt is the
// adapter for that core; the table of single loads stays as it was there.
//
//	git worktree add /tmp/base 0abab02
//	mkdir /tmp/base/test/apps && cp -r test/apps/curve /tmp/base/test/apps/
//	cp $(ls test/decisions/*.go | grep -v -e _test.go -e /play.go -e /model.go -e /scenarios.go -e /recorded.go -e /safety.go) /tmp/base/test/decisions/
//	cp -r test/decisions/testdata/apps /tmp/base/test/decisions/testdata/
//	cp test/decisions/testdata/adapter-0abab02.go.txt /tmp/base/test/decisions/adapter.go
//	(cd /tmp/base && go run ./test/decisions -record /tmp/population.gz && go run ./test/decisions -record-apps /tmp/apps.gz)
//	cp /tmp/population.gz test/decisions/testdata/population-0abab02.gz
//	cp /tmp/apps.gz test/decisions/testdata/apps-0abab02.gz
//	git worktree remove --force /tmp/base
const (
	baselineFile = "testdata/population-0abab02.gz"
	appsBaseline = "testdata/apps-0abab02.gz"
)

const baselineFormat = 1

// baseline is the recorded figures of the first episodes of a seed.
type baseline struct {
	seed    uint64
	hash    uint64
	tallies []tally
}

func (b *baseline) get() []tally {
	if b == nil {
		return nil
	}
	return b.tallies
}

// save writes the figures.
func (b *baseline) save(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write baseline: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return fmt.Errorf("write baseline %s: %w", path, err)
	}
	fmt.Fprintf(z, "%d %d %d %x\n", baselineFormat, b.seed, len(b.tallies), b.hash)
	for i := range b.tallies {
		a := &b.tallies[i]
		crossed := 0
		if a.crossed {
			crossed = 1
		}
		fmt.Fprintln(z, i, a.evicted, a.innocents, a.early, a.victims, a.polite, a.repeated, a.kubelet, a.kernel, crossed, a.lowest)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("write baseline %s: %w", path, err)
	}
	return nil
}

func readBaseline(path string) (*baseline, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read baseline: %w", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("read baseline %s: %w", path, err)
	}
	in := bufio.NewReader(z)
	b := &baseline{}
	var format, n int
	if _, err := fmt.Fscanf(in, "%d %d %d %x\n", &format, &b.seed, &n, &b.hash); err != nil {
		return nil, fmt.Errorf("read baseline %s: first line: %w", path, err)
	}
	if format != baselineFormat || n < 0 || n > 1<<20 {
		return nil, fmt.Errorf("read baseline %s: format %d with %d episodes, want format %d", path, format, n, baselineFormat)
	}
	for i := range n {
		var index, crossed int
		var a tally
		if _, err := fmt.Fscanln(in, &index, &a.evicted, &a.innocents, &a.early, &a.victims, &a.polite, &a.repeated, &a.kubelet, &a.kernel, &crossed, &a.lowest); err != nil || index != i {
			return nil, fmt.Errorf("read baseline %s: episode %d: %d, %w", path, i, index, err)
		}
		a.crossed = crossed == 1
		b.tallies = append(b.tallies, a)
	}
	return b, nil
}

// fits reports why the baseline says nothing of these episodes, which must be all of the recorded ones or the first of them.
func (b *baseline) fits(seed uint64, all []*episode, hash func([]*episode) uint64) error {
	switch {
	case b.seed != seed || len(all) > len(b.tallies):
		return fmt.Errorf("the baseline has %d episodes of seed %d: there is none for %d episodes of seed %d", len(b.tallies), b.seed, len(all), seed)
	case len(all) == len(b.tallies) && hash(all) != b.hash:
		return fmt.Errorf("the episodes are not those of the baseline of seed %d: record it again, as the comment in baseline.go says", b.seed)
	}
	return nil
}

// part keeps the figures of the episodes with these indexes.
func (b *baseline) part(all []*episode) *baseline {
	if b == nil {
		return nil
	}
	out := &baseline{seed: b.seed}
	for _, e := range all {
		out.tallies = append(out.tallies, b.tallies[e.Index])
	}
	return out
}
