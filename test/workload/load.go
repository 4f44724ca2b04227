package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"spillway/test/meminfo"
)

// step is the longest pause between two touches of growing memory.
const step = 10 * time.Millisecond

// report prints at most once a second; due is when it prints next.
type report struct {
	w    io.Writer
	due  time.Time
	note string // what is to be said besides
}

func (r *report) print(now time.Time, held int64) {
	if now.Before(r.due) {
		return
	}
	r.due = now.Add(time.Second)
	fmt.Fprintf(r.w, "%s held %d bytes (%.1f MiB)%s\n", now.UTC().Format("15:04:05.000"), held, float64(held)/(1<<20), r.note)
}

// idle reports what is held until the context ends.
func idle(ctx context.Context, r *region, rep *report) error {
	for {
		rep.print(time.Now(), r.held)
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
	}
}

// grow moves the region from where it is to the given size, evenly at rate bytes per second of wall-clock time. It waits
// where the node would have less than leave bytes left; 0 does not look.
func grow(ctx context.Context, r *region, rep *report, to, rate, leave int64) error {
	from, start := r.held, time.Now()
	for {
		now := time.Now()
		d := int64(now.Sub(start).Seconds() * float64(rate))
		next := from + d
		if to < from {
			next = max(from-d, to)
		} else {
			next = min(next, to)
		}
		if leave > 0 {
			left, err := meminfo.Left("/proc/meminfo")
			if err != nil {
				return err
			}
			if left <= leave {
				rep.print(now, r.held)
				// The kernel may be about to drop what it holds for itself: there can be more again.
				if err := wait(ctx, step); err != nil {
					return err
				}
				continue
			}
			// Others take memory too: on in ever smaller steps.
			next = min(next, r.held+max((left-leave)/4, 1<<20))
		}
		if err := r.resize(next); err != nil {
			return err
		}
		rep.print(now, r.held)
		if next == to {
			return nil
		}
		if err := wait(ctx, step); err != nil {
			return err
		}
	}
}

func hold(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	pos, err := parse(flag.NewFlagSet("hold", flag.ContinueOnError), args, stderr, 1)
	if err != nil {
		return err
	}
	n, err := parseSize(pos[0])
	if err != nil {
		return usageError(err.Error())
	}
	var r region
	if err := r.resize(n); err != nil {
		return err
	}
	return idle(ctx, &r, &report{w: stdout})
}

// waitFor blocks until the file exists or the context ends; an empty name is there already.
func waitFor(ctx context.Context, name string, held func()) error {
	for name != "" {
		if _, err := os.Stat(name); err == nil {
			return nil
		}
		held()
		if err := wait(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

func leak(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("leak", flag.ContinueOnError)
	var rate, then, limit, first, leave size
	fs.Var(&rate, "rate", "bytes to touch per second")
	fs.Var(&then, "then", "bytes to touch per second later, see --after")
	after := fs.Duration("after", 0, "grow at --rate for so long, and at --then from there on")
	fs.Var(&limit, "limit", "stop growing at this size; 0 never stops")
	fs.Var(&first, "hold", "touch this much at once before the growth")
	fs.Var(&leave, "leave", "wait while the node has less than this left")
	delay := fs.Duration("delay", 0, "wait before the growth")
	start := fs.String("wait-for", "", "wait before the growth until this file exists")
	deaf := fs.Bool("ignore-sigterm", false, "ignore SIGTERM")
	linger := fs.Duration("linger", 0, "go on for so long after a SIGTERM")
	if _, err := parse(fs, args, stderr, 0); err != nil {
		return err
	}
	if rate <= 0 {
		return usageError("leak: --rate must be above 0")
	}
	if (then > 0) != (*after > 0) {
		return usageError("leak: --then and --after go together")
	}
	if limit > 0 && limit < first {
		return usageError("leak: --limit is under --hold")
	}
	if *deaf {
		signal.Ignore(syscall.SIGTERM)
	}
	if *linger > 0 {
		ctx = outlive(ctx, *linger)
	}
	r, rep := &region{}, &report{w: stdout}
	if err := r.resize(int64(first)); err != nil {
		return err
	}
	if err := waitFor(ctx, *start, func() { rep.print(time.Now(), r.held) }); err != nil {
		return err
	}
	if err := hang(ctx, r, rep, *delay); err != nil {
		return err
	}
	to := int64(limit)
	if to == 0 {
		to = 1 << 62
	}
	if then > 0 {
		slow := min(to, r.held+int64(after.Seconds()*float64(rate)))
		if err := grow(ctx, r, rep, slow, int64(rate), int64(leave)); err != nil {
			return err
		}
		rate = then
	}
	if err := grow(ctx, r, rep, to, int64(rate), int64(leave)); err != nil {
		return err
	}
	return idle(ctx, r, rep)
}

// outlive returns a context that ends so long after ctx.
func outlive(ctx context.Context, d time.Duration) context.Context {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(d, cancel) })
	return later
}

func sawtooth(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("sawtooth", flag.ContinueOnError)
	var rate, low, high size
	fs.Var(&rate, "rate", "bytes to touch per second; they are given back at once")
	fs.Var(&low, "low", "lowest size")
	fs.Var(&high, "high", "highest size")
	start := fs.String("wait-for", "", "wait before the growth until this file exists")
	first := fs.Uint("first", 0, "teeth before it waits for the file")
	if _, err := parse(fs, args, stderr, 0); err != nil {
		return err
	}
	if rate <= 0 || high <= low {
		return usageError("sawtooth: --rate must be above 0 and --high above --low")
	}
	r, rep := &region{}, &report{w: stdout}
	for n := uint(0); ; n++ {
		if err := r.resize(int64(low)); err != nil {
			return err
		}
		if n == *first {
			if err := rest(ctx, *start, r, rep, n); err != nil {
				return err
			}
		}
		if err := grow(ctx, r, rep, int64(high), int64(rate), 0); err != nil {
			return err
		}
	}
}

// rest waits for the file after so many rounds.
func rest(ctx context.Context, name string, r *region, rep *report, rounds uint) error {
	rep.note = fmt.Sprintf(", waits after %d rounds", rounds)
	defer func() { rep.note = "" }()
	return waitFor(ctx, name, func() { rep.print(time.Now(), r.held) })
}

// burst touches memory at once, again and again: it gives it back after a while, or keeps it.
func burst(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("burst", flag.ContinueOnError)
	var n, limit size
	fs.Var(&n, "size", "bytes to touch at once")
	fs.Var(&limit, "limit", "with --keep: touch no more than this in all; 0: no limit")
	stay := fs.Duration("stay", 0, "give them back after so long")
	keep := fs.Bool("keep", false, "give nothing back")
	every := fs.Duration("every", 0, "from one burst to the next")
	start := fs.String("wait-for", "", "wait until this file exists")
	first := fs.Uint("first", 0, "bursts before it waits for the file")
	if _, err := parse(fs, args, stderr, 0); err != nil {
		return err
	}
	if n <= 0 || *stay < 0 || *every <= *stay {
		return usageError("burst: --size must be above 0 and --every above --stay")
	}
	r, rep := &region{}, &report{w: stdout}
	for rounds := uint(0); ; rounds++ {
		if rounds == *first {
			if err := rest(ctx, *start, r, rep, rounds); err != nil {
				return err
			}
		}
		began, to := time.Now(), r.held+int64(n)
		if limit > 0 {
			to = min(to, max(r.held, int64(limit)))
		}
		if err := r.resize(to); err != nil {
			return err
		}
		if !*keep {
			if err := hang(ctx, r, rep, *stay); err != nil {
				return err
			}
			if err := r.resize(0); err != nil {
				return err
			}
		}
		if err := hang(ctx, r, rep, *every-time.Since(began)); err != nil {
			return err
		}
	}
}

// hang holds what it has for so long.
func hang(ctx context.Context, r *region, rep *report, d time.Duration) error {
	for end := time.Now().Add(d); ; {
		now := time.Now()
		rep.print(now, r.held)
		if !now.Before(end) {
			return ctx.Err()
		}
		if err := wait(ctx, min(time.Second, end.Sub(now))); err != nil {
			return err
		}
	}
}

// alloc touches everything as fast as the kernel lets it: the way to an OOM kill at the container's own limit. With
// --child another process does it, so that the kernel kills a process that is not the container's first.
func alloc(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("alloc", flag.ContinueOnError)
	child := fs.Bool("child", false, "allocate in a child process and outlive it")
	pos, err := parse(fs, args, stderr, 1)
	if err != nil {
		return err
	}
	n, err := parseSize(pos[0])
	if err != nil {
		return usageError(err.Error())
	}
	if !*child {
		r, rep := &region{}, &report{w: stdout}
		for r.held < n {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := r.resize(min(r.held+(4<<20), n)); err != nil {
				return err
			}
			rep.print(time.Now(), r.held)
		}
		return idle(ctx, r, rep)
	}
	c := exec.CommandContext(ctx, "/proc/self/exe", "alloc", pos[0])
	c.Stdout, c.Stderr = stdout, stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start child: %w", err)
	}
	fmt.Fprintf(stdout, "child %d allocates %d bytes\n", c.Process.Pid, n)
	_ = c.Wait() // how it ended is in ProcessState
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fmt.Fprintf(stdout, "child %d ended: %s\n", c.Process.Pid, c.ProcessState)
	return idle(ctx, &region{}, &report{w: stdout})
}

// reread makes a file active page cache: pages that are read a second time move to the active list, and the kubelet
// counts those as used.
func reread(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("reread", flag.ContinueOnError)
	var n, rate size
	name := fs.String("file", "", "file to read, made when it is missing")
	fs.Var(&n, "size", "its size")
	fs.Var(&rate, "rate", "bytes to read per second; 0 reads as fast as it can")
	start := fs.String("wait-for", "", "wait before the first read until this file exists")
	if _, err := parse(fs, args, stderr, 0); err != nil {
		return err
	}
	if *name == "" || n <= 0 {
		return usageError("reread: --file and --size are needed")
	}
	if fi, err := os.Stat(*name); err != nil || fi.Size() != int64(n) {
		if err := fill(ctx, *name, int64(n)); err != nil {
			return fmt.Errorf("make file %s: %w", *name, err)
		}
	}
	f, err := os.Open(*name)
	if err != nil {
		return err
	}
	defer f.Close()
	rep := &report{w: stdout}
	if err := waitFor(ctx, *start, func() { rep.print(time.Now(), 0) }); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	var read int64
	begin := time.Now()
	for due := time.Now().Add(time.Second); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if ahead := time.Duration(float64(read)/float64(max(rate, 1))*float64(time.Second)) - time.Since(begin); rate > 0 && ahead > step {
			if err := wait(ctx, ahead); err != nil {
				return err
			}
		}
		k, err := f.Read(buf)
		read += int64(k)
		if err == io.EOF {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err != nil {
			return fmt.Errorf("read file %s: %w", *name, err)
		}
		if now := time.Now(); now.After(due) {
			due = now.Add(time.Second)
			fmt.Fprintf(stdout, "%s read %d bytes of a file of %d\n", now.UTC().Format("15:04:05.000"), read, n)
		}
	}
}

// fill writes n bytes to a new file and waits until they are on the disk, so that no dirty page is left to count.
func fill(ctx context.Context, name string, n int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i)
	}
	for left := n; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := f.Write(buf[:min(left, int64(len(buf)))])
		if err != nil {
			return err
		}
		left -= int64(k)
	}
	return f.Sync()
}

// forks starts short-lived processes: cgroup events and page-table churn without growth.
func forks(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("forks", flag.ContinueOnError)
	rate := fs.Int("rate", 0, "processes to start per second")
	if _, err := parse(fs, args, stderr, 0); err != nil {
		return err
	}
	if *rate <= 0 {
		return usageError("forks: --rate must be above 0")
	}
	start, due := time.Now(), time.Now()
	for started := 0; ; {
		for want := int(time.Since(start).Seconds() * float64(*rate)); started < want; started++ {
			if err := exec.CommandContext(ctx, "/proc/self/exe", "hold", "-h").Run(); err != nil {
				return fmt.Errorf("run child: %w", err)
			}
		}
		if now := time.Now(); !now.Before(due) {
			due = now.Add(time.Second)
			fmt.Fprintf(stdout, "%s started %d processes\n", now.UTC().Format("15:04:05.000"), started)
		}
		if err := wait(ctx, step); err != nil {
			return err
		}
	}
}
