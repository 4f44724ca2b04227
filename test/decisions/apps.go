package main

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"sync"

	apps "spillway/test/apps/curve"
)

// Real applications are played beside the drawn population: growth curves that command apps recorded through the agent's sampler,
// each at several margins, with and without history, on a small node with one neighbour and a larger one with two.

// amount is one amount of a recorded curve, as a shape has it.
type amount struct {
	at, v []float64 // s, bytes
	again bool      // a leak: its last half follows again and again
}

// value returns what it is so many seconds after the curve's begin. After its end it stays; a leak goes on as in its last half.
func (a *amount) value(t float64) float64 {
	last := a.at[len(a.at)-1]
	if t <= last {
		return a.interpolate(t)
	}
	end := a.v[len(a.v)-1]
	half := a.interpolate(last / 2)
	if rise := end - half; a.again && rise > 0 {
		n, rest := math.Modf((t - last) / (last / 2))
		return end + n*rise + a.interpolate(last/2+rest*last/2) - half
	}
	return end
}

func (a *amount) interpolate(t float64) float64 {
	low, high := 0, len(a.at)-1
	if t <= a.at[0] {
		return a.v[0]
	}
	for high-low > 1 {
		if mid := (low + high) / 2; a.at[mid] <= t {
			low = mid
		} else {
			high = mid
		}
	}
	f := (t - a.at[low]) / (a.at[high] - a.at[low])
	return a.v[low] + f*(a.v[high]-a.v[low])
}

// recordedApps are the curves, by name and as amounts by form.
type recordedApps struct {
	curves  []*apps.Curve // in the order of their names
	amounts map[form]*amount
}

const appsFolder = "testdata/apps"

// loadApps reads the curves once. They are in the program: a faulty one is a fault of the repository.
var loadApps = sync.OnceValue(func() *recordedApps {
	r, err := readApps(recordings)
	if err != nil {
		panic(err)
	}
	return r
})

func readApps(files fs.FS) (*recordedApps, error) {
	names, err := fs.Glob(files, appsFolder+"/*.gz")
	if err != nil || len(names) == 0 {
		return nil, errors.Join(fmt.Errorf("read %s: no curve", appsFolder), err)
	}
	r := &recordedApps{amounts: map[form]*amount{}}
	for _, name := range names {
		data, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("read curve: %w", err)
		}
		c, err := apps.Read(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if c.Name != strings.TrimSuffix(path.Base(name), ".gz") {
			return nil, fmt.Errorf("%s is the curve of %s", name, c.Name)
		}
		r.curves = append(r.curves, c)
		anon, shmem, cache := &amount{again: c.End == apps.Leak}, &amount{again: c.End == apps.Leak}, &amount{}
		for i := range c.Points {
			p := &c.Points[i]
			for _, x := range []struct {
				to *amount
				v  int64
			}{{anon, p.Anon}, {shmem, p.Shmem}, {cache, p.Active}} {
				x.to.at, x.to.v = append(x.to.at, p.At.Seconds()), append(x.to.v, float64(x.v))
			}
		}
		r.amounts[form(c.Name+"/anon")], r.amounts[form(c.Name+"/shmem")], r.amounts[form(c.Name+"/cache")] = anon, shmem, cache
	}
	return r, nil
}

// recorded reports whether the shape is an amount of a recorded curve. Its form names it, so that the drawn episodes, which have
// none, stay as they are.
func (s *shape) recorded() bool { return strings.IndexByte(string(s.Form), '/') > 0 }

// moves reports whether the amount changes over time other than at a start.
func (s *shape) moves() bool { return s.Form == ramp || s.recorded() }

// onlyCache reports whether it is page cache that grows, which an eviction does not give back.
func (p *podSpec) onlyCache() bool {
	if !p.Cache.recorded() {
		return p.Cache.Form == ramp
	}
	amounts := loadApps().amounts
	return amounts[p.Anon.Form].rise()+amounts[p.Shmem.Form].rise() < amounts[p.Cache.Form].rise()/10
}

// rise is from the curve's begin to its peak, bytes.
func (a *amount) rise() float64 { return slices.Max(a.v) - a.v[0] }

func (r *recordedApps) shape(name, part string, start float64) shape {
	f := form(name + "/" + part)
	return shape{Form: f, Base: r.amounts[f].v[0], Start: start, Fresh: 0.2}
}

// What is played of each curve.
var (
	appMargins = []float64{0.6, 0.9, 1.1, 1.5, 3} // × the growth of the curve
	appExits   = []struct {
		kind    string
		seconds float64
	}{{"fast", 1}, {"draining", 8}}
)

// appHosts say how a pod of an application runs.
var appHosts = map[string]struct {
	kind   string
	starts bool // the curve begins with the start of its container; else it has run before
}{
	"JVM": {"ReplicaSet", true}, "Node": {"ReplicaSet", true}, "Python": {"ReplicaSet", true}, "Chromium": {"ReplicaSet", false}, "Redis": {"StatefulSet", false},
	"PostgreSQL": {"StatefulSet", false}, "go build": {"Job", true}, "tar": {"Job", true}, "sort": {"Job", true},
}

// appStart is when a curve begins, s: the agent sees what was there before.
const appStart = 5

// peak returns the highest of what a curve holds, with active page cache or without, bytes.
func peak(c *apps.Curve, cache bool) float64 {
	most := int64(0)
	for i := range c.Points {
		v := c.Points[i].Held()
		if cache {
			v += c.Points[i].Active
		}
		most = max(most, v)
	}
	return float64(most)
}

// makeApps makes the episodes of all curves.
func makeApps() []*episode {
	r := loadApps()
	var all []*episode
	for _, c := range r.curves {
		for _, factor := range appMargins {
			for _, known := range []bool{true, false} {
				for neighbours := 1; neighbours <= 2; neighbours++ {
					for exit := range appExits {
						e := &episode{Index: len(all), Kind: c.Name, Known: known, Exit: appExits[exit].kind, Call: 0.02, Noise: uint64(len(all)) + 1}
						e.Phase = math.Mod(3.7*float64(e.Index), 10)
						all = append(all, e)
						r.fill(e, c, factor, neighbours, appExits[exit].seconds)
					}
				}
			}
		}
	}
	parallel(len(all), func(i int) { all[i].measure(all[i].Seconds) })
	return all
}

// factor is which of appMargins an episode of makeApps has.
func (e *episode) factor() float64 { return appMargins[e.Index/(4*len(appExits))%len(appMargins)] }

// fill makes the node and the pods of an episode.
func (r *recordedApps) fill(e *episode, c *apps.Curve, factor float64, neighbours int, exit float64) {
	host := appHosts[c.Application]
	first := &c.Points[0]
	base := float64(first.Held() + first.Active)
	if host.starts {
		base = 0
	}
	growth := peak(c, true) - base
	e.Margin, e.Rate = factor*growth, growth/c.Seconds()
	e.Capacity = max(4*gib, 2.5*e.Margin)
	if neighbours == 2 {
		e.Capacity = max(16*gib, 4*e.Margin)
	}
	kernel, cached := 0.006*e.Capacity, 0.03*(e.Capacity-e.Margin)
	used := e.Capacity - e.Margin - max(hardThreshold, kernel-cached)
	e.Kernel, e.System = shape{Form: still, Base: kernel}, shape{Form: still, Base: 0.08 * used}

	app := podSpec{
		Namespace: "apps", Name: c.Name + "-0", Workload: c.Name, Kind: host.kind, Replicas: 2, Retries: 3, Request: base + 0.6*growth, Grace: 30, Age: 3600, Born: -1,
		ExitKind: e.Exit, Exit: exit, Cut: 1.5, Unmount: 0.5, Delay: 3, Known: e.Known, MemoryVolume: peakShmem(c) > 64*mib,
	}
	start := float64(appStart)
	if host.starts {
		app.Born, start = appStart, 0
	}
	app.Anon, app.Shmem, app.Cache = r.shape(c.Name, "anon", start), r.shape(c.Name, "shmem", start), r.shape(c.Name, "cache", start)
	if c.End == apps.Done {
		app.Finish = c.Seconds() + app.Anon.Fresh
	}
	if app.qualify(); e.Known {
		app.Exits = []float64{0.9 * exit, 1.1 * exit, exit}
		app.Peaks = []float64{float64(first.Held())} // a leak has come back from nothing
		if c.End != apps.Leak {
			app.Peaks = []float64{peak(c, false)} // it ran once before
		}
	}
	e.Pods = append(e.Pods, app)

	rest := used - e.System.Base - cached
	if !host.starts {
		rest -= base
	}
	payment := podSpec{
		Namespace: "apps", Name: "payment-0", Workload: "payment", Kind: "ReplicaSet", Replicas: 2, Retries: 3, Grace: 30, Age: 86400, Born: -1, ExitKind: "fast", Exit: 1, Cut: 1.5, Delay: 3,
		Anon: shape{Form: still, Base: rest}, Cache: shape{Form: still, Base: cached}, Known: e.Known, Exits: []float64{1, 1},
	}
	if neighbours == 2 { // the other one is a heap that is busy, and has asked for nothing
		batch := payment
		batch.Name, batch.Workload, batch.QoS, batch.Age = "report-0", "report", "BestEffort", 900
		batch.Anon = shape{Form: saw, Base: 0.3 * rest, Height: 0.02 * e.Margin, Every: 12}
		payment.Anon.Base = 0.7 * rest
		batch.Cache.Base, payment.Cache.Base = 0.3*cached, 0.7*cached
		batch.Peaks = []float64{batch.Anon.Base + batch.Anon.Height}
		e.Pods = append(e.Pods, batch)
	}
	payment.Request = 1.1 * payment.Anon.Base
	payment.qualify()
	e.Pods = append(e.Pods, payment)

	e.Seconds = appStart + c.Seconds() + 25
	if c.End == apps.Leak {
		e.Seconds = appStart + (2*factor+3)*c.Seconds() + 100 // until it crosses, and measure ends it then
	}
}

func peakShmem(c *apps.Curve) float64 {
	most := int64(0)
	for i := range c.Points {
		most = max(most, c.Points[i].Shmem)
	}
	return float64(most)
}

// hashApps is a fingerprint of the episodes and of the curves that they play.
func hashApps(all []*episode) uint64 {
	h := fnv.New64a()
	for _, e := range all {
		e.write(h)
	}
	for _, c := range loadApps().curves {
		writeCurve(h, c)
	}
	return h.Sum64()
}

func writeCurve(out io.Writer, c *apps.Curve) { fmt.Fprintln(out, c.Name, c.End, c.Points) }
