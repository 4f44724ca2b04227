// Command apps records how the memory of real applications grows, through the agent's own readers: each application runs in a
// cgroup of its own under the memory controller of this machine, and the sampler of the agent follows that cgroup.
//
//	go run ./test/apps -list
//	go run ./test/apps -record redis-save -o test/decisions/testdata/apps
//
// In a pod of the test cluster it plays one, with the node's own programs: -play NAME -root /host -dir DIR -go FILE.
//
// Recording needs root for the cgroup, the Debian packages that -list names, and about 2 GiB of free memory. The cgroup has a limit of
// its own, and is removed with all of its processes however the recording ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"spillway/test/apps/curve"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "apps: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("apps", flag.ContinueOnError)
	list := fs.Bool("list", false, "print the applications, and the packages that are missing for them")
	name := fs.String("record", "", "application to record, or all")
	dir := fs.String("o", ".", "folder for NAME.gz")
	show := fs.String("show", "", "file to print as a plot: a recorded curve")
	load := fs.String("play", "", "load to play where this runs: "+playNames())
	needs := fs.String("needs", "", "load whose missing packages are to be printed")
	root := fs.String("root", "", "with -play: root of the file system that has the programs")
	scratch := fs.String("dir", "", "with -play: folder for files, below -root")
	start := fs.String("go", "", "with -play: wait for this file, below -root")
	if err := fs.Parse(args); err != nil {
		return err
	}
	switch {
	case *list:
		return printList(out)
	case *show != "":
		return showCurve(out, *show)
	case *name != "":
		return recordAll(ctx, out, *name, *dir)
	case *needs != "":
		a, err := playable(*needs)
		if err != nil {
			return err
		}
		for _, pkg := range a.missing() {
			fmt.Fprintln(out, pkg)
		}
		return nil
	case *load != "":
		a, err := playable(*load)
		if err != nil {
			return err
		}
		return a.playHere(ctx, out, *root, *scratch, *start)
	}
	return errors.New("nothing to do: -list, -record NAME, -show FILE, -needs NAME or -play NAME")
}

// missing returns the Debian packages that have to be installed for the application.
func (a *app) missing() []string {
	var out []string
	for _, n := range a.needs {
		if _, err := n.find(); err != nil {
			out = append(out, n.pkg)
		}
	}
	return out
}

// need is a program, and the Debian package that has it.
type need struct {
	program string // a name for $PATH, or a pattern of files
	pkg     string
}

// find returns the program's path: of several files that match the last, which is the newest version.
func (n *need) find() (string, error) {
	if !filepath.IsAbs(n.program) {
		path, err := exec.LookPath(n.program)
		if err != nil {
			return "", fmt.Errorf("find %s: %w; apt-get install %s", n.program, err, n.pkg)
		}
		return path, nil
	}
	found, err := filepath.Glob(n.program)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", n.program, err)
	}
	if len(found) == 0 {
		return "", fmt.Errorf("find %s: there is none; apt-get install %s", n.program, n.pkg)
	}
	return found[len(found)-1], nil
}

func printList(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tAPPLICATION\tWHAT\tEND\tPACKAGES")
	for i := range apps {
		a := &apps[i]
		state := "installed"
		if m := a.missing(); len(m) > 0 {
			state = "missing: apt-get install " + strings.Join(m, " ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", a.name, a.application, a.what, a.end, state)
	}
	return w.Flush()
}

// recordAll records one application or all; one that fails does not stop the others.
func recordAll(ctx context.Context, out io.Writer, name, dir string) error {
	var errs []error
	found := false
	for i := range apps {
		a := &apps[i]
		if name != "all" && name != a.name {
			continue
		}
		found = true
		if ctx.Err() != nil {
			break
		}
		c, err := a.record(ctx, out)
		if err == nil {
			err = save(c, filepath.Join(dir, a.name+".gz"))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("record %s: %w", a.name, err))
			continue
		}
		plot(out, c)
	}
	if !found {
		return fmt.Errorf("record %s: no such application, see -list", name)
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// save writes the file beside its place first: a recording that fails spoils none that is there.
func save(c *curve.Curve, path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".curve-*")
	if err != nil {
		return fmt.Errorf("write curve: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(c.Write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write curve: %w", err)
	}
	return nil
}

func showCurve(out io.Writer, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("show curve: %w", err)
	}
	c, err := curve.Read(data)
	if err != nil {
		return err
	}
	plot(out, c)
	return nil
}

// plot prints the header and a column for each second or more: held memory and, above it, active page cache.
func plot(out io.Writer, c *curve.Curve) {
	const height, width = 12, 100
	fmt.Fprintf(out, "%s: %s, %s; %s\n  %s\n  %s\n", c.Name, c.Application, c.What, c.End, c.Command, c.Program)
	var most int64
	held, all := make([]int64, width), make([]int64, width)
	for i := range c.Points {
		p := &c.Points[i]
		x := min(width-1, int(float64(width)*p.At.Seconds()/c.Seconds()))
		held[x], all[x] = max(held[x], p.Held()), max(all[x], p.Held()+p.Active)
		most = max(most, all[x])
	}
	for x := 1; x < width; x++ { // columns without a reading are between two like them
		if all[x] == 0 {
			held[x], all[x] = held[x-1], all[x-1]
		}
	}
	for y := height; y > 0; y-- {
		var b strings.Builder
		for x := range width {
			level := int64(2*y-1) * max(most, 1) / (2 * height)
			switch {
			case held[x] >= level:
				b.WriteByte('#')
			case all[x] >= level:
				b.WriteByte('.')
			default:
				b.WriteByte(' ')
			}
		}
		fmt.Fprintf(out, "%6d MiB |%s\n", most*int64(y)/height>>20, strings.TrimRight(b.String(), " "))
	}
	var anon, shmem, active, inactive, other int64
	for i := range c.Points {
		p := &c.Points[i]
		anon, shmem, active = max(anon, p.Anon), max(shmem, p.Shmem), max(active, p.Active)
		inactive, other = max(inactive, p.Inactive), max(other, p.Other)
	}
	fmt.Fprintf(out, "  %s, %d points; peaks in MiB: anon %d, shmem %d, active file %d, inactive file %d, other %d; held at the begin %d, at the end %d\n",
		c.Points[len(c.Points)-1].At.Round(time.Second/10), len(c.Points), anon>>20, shmem>>20, active>>20, inactive>>20, other>>20,
		c.Points[0].Held()>>20, c.Points[len(c.Points)-1].Held()>>20)
}
