package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spillway/agent/sampler"
	"spillway/cgroup"
	"spillway/test/apps/curve"
)

//go:embed programs
var programs embed.FS

// every is the time between two readings: that of the agent's sampler for pods.
const every = 100 * time.Millisecond

// app is an application that is recorded.
type app struct {
	name, application, what, end string
	needs                        []need
	command                      string // for people
	version                      []string
	user                         string
	most                         time.Duration // for the recording; without its preparation
	prepare                      func(ctx context.Context, b *box) error
	play                         func(ctx context.Context, b *box) error
}

// mostGap is how far apart readings may be: the agent itself reads each second while nothing grows.
const mostGap = 2 * time.Second

// prepares is how long preparations may take.
const prepares = 3 * time.Minute

// record runs the application once.
func (a *app) record(ctx context.Context, out io.Writer) (c *curve.Curve, err error) {
	if m := a.missing(); len(m) > 0 {
		return nil, fmt.Errorf("not installed: apt-get install %s", strings.Join(m, " "))
	}
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	b, err := newBox(tree, a.name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := b.Close(); cerr != nil {
			err = errors.Join(err, cerr)
		}
		if said := b.said(); err != nil && said != "" {
			err = fmt.Errorf("%w; the last that was printed:\n%s", err, said)
		}
	}()
	b.user = a.user
	version, err := b.outside(ctx, a.version[0], a.version[1:]...)
	if err != nil {
		return nil, err
	}
	version, _, _ = strings.Cut(strings.TrimSpace(version), "\n")
	version, _, _ = strings.Cut(version, " sha=") // what follows says how Redis was built
	version = strings.Join(strings.Fields(version), " ")
	if strings.HasPrefix(version, "v") {
		version = a.application + " " + version
	}
	fmt.Fprintf(out, "%s: %s\n", a.name, version)
	if a.prepare != nil {
		limited, stop := context.WithTimeout(ctx, prepares)
		err := a.prepare(limited, b)
		stop()
		if err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
	}
	points, err := a.follow(ctx, tree, b)
	if err != nil {
		return nil, err
	}
	return &curve.Curve{Points: points, Header: curve.Header{
		Name: a.name, Application: a.application, What: a.what, End: a.end, Program: version, Command: a.command, Kernel: kernel(),
		Source: fmt.Sprintf("go run ./test/apps -record %s: the agent's sampler each %s, cgroup v%d, %d processors", a.name, every, tree.MemoryVersion(), runtime.NumCPU()),
	}}, nil
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "not known"
	}
	// What follows the version says who built it.
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return unix.ByteSliceToString(u.Sysname[:]) + " " + release + " " + unix.ByteSliceToString(u.Machine[:])
}

// follow plays the application while the sampler follows its cgroup.
func (a *app) follow(ctx context.Context, tree *cgroup.Tree, b *box) ([]curve.Point, error) {
	group, err := tree.Group(b.path)
	if err != nil {
		return nil, err
	}
	id := group.ID()
	if err := group.Close(); err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	s, err := sampler.New(sampler.Options{Tree: tree, Fastest: every / 2, Slowest: every})
	if err != nil {
		return nil, err
	}
	s.Track([]sampler.Target{{Path: b.path, ID: id, Key: a.name}})

	sampling, stop := context.WithCancel(ctx)
	var wait sync.WaitGroup
	var sampled error
	wait.Go(func() { sampled = s.Run(sampling) })
	k := keeper{s: s}
	wait.Go(func() {
		for sampling.Err() == nil {
			_ = pause(sampling, time.Second)
			k.take()
		}
	})
	limited, cancel := context.WithTimeoutCause(ctx, a.most, fmt.Errorf("not done within %s", a.most))
	b.clock = s.Now
	b.mark()
	err = a.play(limited, b)
	ended := s.Now()
	if err == nil {
		err = pause(ctx, 2*every) // for the newest reading
	}
	cancel()
	stop()
	wait.Wait()
	if err := errors.Join(err, notCanceled(sampled)); err != nil {
		return nil, err
	}
	return k.between(b.begin, ended)
}

func notCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// keeper copies samples before the ring drops them.
type keeper struct {
	s       *sampler.Sampler
	all     []sampler.GroupSample
	dst     [400]sampler.GroupSample
	scratch []uint64
}

func (k *keeper) take() {
	for _, series := range k.s.Series() {
		var got []sampler.GroupSample
		got, k.scratch = series.Window(k.dst[:], k.scratch)
		for i := range got {
			if n := len(k.all); n == 0 || got[i].At > k.all[n-1].At {
				k.all = append(k.all, got[i])
			}
		}
	}
}

// between returns the points of the samples from begin to end.
func (k *keeper) between(begin, end time.Duration) ([]curve.Point, error) {
	var out []curve.Point
	for i := range k.all {
		x := &k.all[i]
		if x.At < begin || x.At > end+2*every {
			continue
		}
		p, err := point(x, begin)
		if err != nil {
			return nil, err
		}
		if n := len(out); n > 0 && p.At-out[n-1].At > mostGap {
			return nil, fmt.Errorf("no reading for %s at %s: this machine is too busy to record", (p.At - out[n-1].At).Round(every), p.At.Round(every))
		}
		out = append(out, p)
	}
	if len(out) < 20 {
		return nil, fmt.Errorf("%d readings: the recording ended after %s", len(out), end-begin)
	}
	first := out[0].At
	for i := range out {
		out[i].At -= first
	}
	return out, nil
}

// point takes a sample apart.
func point(x *sampler.GroupSample, begin time.Duration) (curve.Point, error) {
	p := curve.Point{At: x.At - begin}
	var usage, working int64
	for _, f := range []struct {
		name string
		from cgroup.Amount
		to   *int64
	}{{"usage", x.Usage, &usage}, {"working set", x.WorkingSet, &working}, {"anon", x.Anon, &p.Anon}, {"shmem", x.Shmem, &p.Shmem}, {"active file", x.ActiveFile, &p.Active}} {
		n, ok := f.from.Bytes()
		if !ok {
			return p, fmt.Errorf("the kernel does not tell the cgroup's %s", f.name)
		}
		*f.to = int64(n)
	}
	p.Inactive = usage - working
	p.Other = working - p.Anon - p.Shmem - p.Active
	return p, nil
}

// program writes a program that an application runs into the box's folder, once: others may be reading it.
func (b *box) program(name string) (string, error) {
	b.writing.Lock()
	defer b.writing.Unlock()
	if _, err := os.Stat(b.file(name)); err == nil {
		return b.file(name), nil
	}
	text, err := programs.ReadFile("programs/" + name)
	if err != nil {
		return "", fmt.Errorf("read program: %w", err)
	}
	if err := os.WriteFile(b.file(name), text, 0o644); err != nil {
		return "", fmt.Errorf("write program: %w", err)
	}
	return b.file(name), nil
}
