package cgroup

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestKernelHigh(t *testing.T) {
	tree := host(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	cg := newGroup(t, tree)
	g := cg.open(t, tree)
	if tree.MemoryVersion() == 1 {
		if _, err := tree.SetHigh(t.Context(), cg.path, g.ID(), 1<<30); !isUnsupported(err, "cgroup v2") {
			t.Errorf("SetHigh on v1: %v, want an UnsupportedError", err)
		}
		if err := tree.ResetHigh(t.Context(), cg.path, g.ID(), Unlimited); !isUnsupported(err, "cgroup v2") {
			t.Errorf("ResetHigh on v1: %v, want an UnsupportedError", err)
		}
		return
	}
	now := func() string {
		t.Helper()
		b, err := os.ReadFile(cg.mem + "/memory.high")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	for _, c := range []struct {
		set, previous Amount
		want          string
	}{
		{1 << 30, Unlimited, "1073741824"},
		{1<<29 + 5, 1 << 30, "536870912"}, // down to a page
		{v1Unlimited() + 1, 1 << 29, "max"},
		{0, Unlimited, "0"},
		{Unlimited, 0, "max"},
	} {
		previous, err := tree.SetHigh(t.Context(), cg.path, g.ID(), c.set)
		if err != nil || previous != c.previous || now() != c.want {
			t.Errorf("SetHigh(%v) = %v, %v, want %v; the file says %s, want %s", c.set, previous, err, c.previous, now(), c.want)
		}
	}
	for _, previous := range []Amount{1 << 28, Absent, 1 << 28, Unlimited} {
		want := "max"
		if previous == 1<<28 {
			want = "268435456"
		}
		if err := tree.ResetHigh(t.Context(), cg.path, g.ID(), previous); err != nil || now() != want {
			t.Errorf("ResetHigh(%v): %v; the file says %s, want %s", previous, err, now(), want)
		}
	}
	if _, err := tree.SetHigh(t.Context(), cg.path, g.ID(), Absent); err == nil || now() != "max" {
		t.Errorf("SetHigh(Absent): %v, the file says %s", err, now())
	}
	if _, err := tree.SetHigh(t.Context(), cg.path, g.ID()+1, 1<<20); !errors.Is(err, ErrGone) || now() != "max" {
		t.Errorf("another id: %v, want ErrGone; the file says %s", err, now())
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tree.SetHigh(canceled, cg.path, g.ID(), 1<<20); !errors.Is(err, context.Canceled) || now() != "max" {
		t.Errorf("canceled: %v; the file says %s", err, now())
	}
	id := g.ID()
	cg.remove(t)
	if err := tree.ResetHigh(t.Context(), cg.path, id, Unlimited); !errors.Is(err, ErrGone) {
		t.Errorf("a removed cgroup: %v, want ErrGone", err)
	}
}

// TestKernelHighBelowUsage: the write returns in time and the limit is in force, whatever there is to reclaim.
func TestKernelHighBelowUsage(t *testing.T) {
	tree := host(t)
	if tree.MemoryVersion() == 1 {
		t.Skip("needs v2: v1 has no memory.high")
	}
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	cg, g, c, _ := cached(t, tree, 256)
	began := time.Now()
	previous, err := tree.SetHigh(t.Context(), cg.path, g.ID(), 32<<20)
	took := time.Since(began)
	usage, uerr := g.Usage()
	t.Logf("took %v, usage then %v", took, usage)
	if err != nil || previous != Unlimited || took > HighTime+lateness || uerr != nil {
		t.Errorf("previous %v, %v, %v after %v", previous, err, uerr, took)
	}
	if kernelAtLeast(t, 6, 16) && usage < 200<<20 {
		t.Errorf("usage %v: the write reclaimed in spite of O_NONBLOCK", usage)
	}
	var d Detail
	if err := g.Detail(&d); err != nil || d.High != 32<<20 {
		t.Errorf("memory.high %v, %v", d.High, err)
	}
	if err := tree.ResetHigh(t.Context(), cg.path, g.ID(), previous); err != nil {
		t.Error(err)
	}
	c.do("anon 64") // no brake any more
	if err := g.Detail(&d); err != nil || d.High != Unlimited {
		t.Errorf("memory.high %v, %v after the reset", d.High, err)
	}
}

// TestKernelHighInterrupted: the limit is set before the kernel reclaims, so a write that a signal ended has set it.
func TestKernelHighInterrupted(t *testing.T) {
	tree := host(t)
	if tree.MemoryVersion() == 1 {
		t.Skip("needs v2: v1 has no memory.high")
	}
	cg, g, _, _ := cached(t, tree, 256)
	fd, err := openFor(g.fd(), v2High, os.O_WRONLY) // without O_NONBLOCK, so that every kernel reclaims
	if err != nil {
		t.Fatal(err)
	}
	defer closeFile(&fd)
	var took time.Duration
	how, err := bounded{limit: time.Millisecond, every: time.Hour}.run(t.Context(), func(stopped func() bool) error {
		began := time.Now()
		defer func() { took = time.Since(began) }()
		return writeUntil(fd, []byte("1048576"), stopped)
	})
	usage, _ := g.Usage()
	var d Detail
	if err := g.Detail(&d); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s after %v, usage then %v", how, took, usage)
	if err != nil || d.High != 1<<20 || took > lateness {
		t.Errorf("%s, %v after %v, memory.high %v", how, err, took, d.High)
	}
	writeTo(t, cg.mem+"/memory.high", "max")
}
