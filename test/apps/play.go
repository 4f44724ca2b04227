package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// plays are loads for pods: like what is recorded, in sizes for a node with a margin of 2 GiB. What comes back is played once,
// and again from when the file is there; a leak waits for the file.
var plays = []app{
	{name: "sort", needs: []need{gnu}, prepare: linesOf(380), play: rounds(sortFile("1200M"))},
	{name: "jvm-serve", needs: []need{java, javac}, prepare: compile, play: rounds(serves(45*time.Second, "java", "-Xms64m", "-Xmx1200m", "Heap", "serve"))},
	{name: "redis-save", needs: redisNeeds, play: rounds(redisSave(1))},
	{name: "redis-fill", needs: redisNeeds, play: later(1, redisFill(40*mib, 64<<30))},
	{name: "jvm-leak", needs: []need{java, javac}, prepare: compile, play: later(3, serves(time.Hour, "java", "-Xms64m", "-Xmx4g", "Heap", "leak"))},
	{name: "node-leak", needs: []need{node}, play: later(3, script(time.Hour, node, "--max-old-space-size=4000", "heap.js", "leak"))},
	{name: "python-leak", needs: []need{python}, play: later(3, script(time.Hour, python, "-u", "lists.py", "leak"))},
}

func playNames() string {
	var names []string
	for i := range plays {
		names = append(names, plays[i].name)
	}
	return strings.Join(names, ", ")
}

func playable(name string) (*app, error) {
	for i := range plays {
		if plays[i].name == name {
			return &plays[i], nil
		}
	}
	return nil, fmt.Errorf("play %s: no such load, there are %s", name, playNames())
}

// rounds plays again and again; each round ends with its processes.
func rounds(play func(context.Context, *box) error) func(context.Context, *box) error {
	return func(ctx context.Context, b *box) error {
		for {
			round, end := context.WithCancel(ctx)
			err := play(round, b)
			end()
			b.servers.Wait()
			if err != nil {
				return err
			}
			if err := b.next(ctx); err != nil {
				return err
			}
			if err := pause(ctx, 5*time.Second); err != nil {
				return err
			}
		}
	}
}

// later plays when it may, so many times beside each other, as servers with several worker processes do.
func later(workers int, play func(context.Context, *box) error) func(context.Context, *box) error {
	return func(ctx context.Context, b *box) error {
		if err := b.next(ctx); err != nil {
			return err
		}
		errs := make([]error, workers)
		var wait sync.WaitGroup
		for i := range errs {
			wait.Go(func() { errs[i] = play(ctx, b) })
		}
		wait.Wait()
		return errors.Join(errs...)
	}
}

// playHere plays the load in the cgroup that this runs in, until ctx ends.
func (a *app) playHere(ctx context.Context, out io.Writer, root, dir, start string) (err error) {
	if root != "" {
		if err := errors.Join(unix.Chroot(root), os.Chdir("/")); err != nil {
			return fmt.Errorf("change root to %s: %w", root, err)
		}
		// An image says nothing about where the node's programs are.
		if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
			return fmt.Errorf("set PATH: %w", err)
		}
	}
	if m := a.missing(); len(m) > 0 {
		return fmt.Errorf("not installed: apt-get install %s", strings.Join(m, " "))
	}
	b := &box{clock: func() time.Duration { return 0 }}
	if b.dir, err = os.MkdirTemp(dir, a.name+"-"); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer func() {
		stop() // ends the processes
		err = errors.Join(err, b.Close())
		if said := b.said(); err != nil && said != "" {
			err = fmt.Errorf("%w; the last that was printed:\n%s", err, said)
		}
	}()
	b.next = func(ctx context.Context) error {
		for start != "" {
			if _, err := os.Stat(start); err == nil {
				return nil
			}
			fmt.Fprintf(out, "%s is ready\n", a.name)
			if err := pause(ctx, time.Second/2); err != nil {
				return err
			}
		}
		return nil
	}
	if a.prepare != nil {
		if err := a.prepare(ctx, b); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	return a.play(ctx, b)
}
