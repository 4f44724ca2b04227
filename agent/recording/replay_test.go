package recording

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func config() judge.Config {
	return judge.Config{
		Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80},
		Policy:   policy.Config{ProtectedNamespaces: []string{"kube-system"}, History: policy.DefaultHistory()},
		SelfUID:  "self",
	}
}

func configure(Header) (judge.Config, error) { return config(), nil }

func testPod(name string, anon uint64, growth float64) policy.Candidate {
	return policy.Candidate{
		Pod: &policy.Pod{Namespace: "shop", Name: name, UID: "uid-" + name, QoS: policy.Burstable, Owner: policy.Owner{Kind: "ReplicaSet", Name: name, UID: "rs-" + name},
			CreatedAt: begin.Add(-time.Hour), StartedAt: begin.Add(-time.Hour), Grace: 30 * time.Second, Labels: map[string]string{"app": name}, Volumes: policy.Volumes{Known: true}},
		Workload: policy.Workload{KnownReplicas: true, Replicas: 2},
		Reading:  policy.Reading{Fresh: true, Usage: anon, WorkingSet: anon, Held: policy.Held{Known: true, Anon: anon}, Growth: growth},
	}
}

// run drives a judge as the agent does, with a leak of 100 MiB/s on a node of 8 GiB, and calls w at each step.
func run(w *Writer, seconds float64) (decisions int) {
	j := judge.New(config())
	for i := 0; float64(i)/20 < seconds; i++ {
		t := float64(i) / 20
		at := begin.Add(time.Duration(t * float64(time.Second)))
		leaked := uint64(gib) + uint64(100*mib*t)
		used := pressure.Bytes(4*gib) + pressure.Bytes(leaked) + pressure.Bytes(i%7)*4096
		l := judge.Look{
			Samples: []pressure.Sample{{At: time.Hour + time.Duration(t*float64(time.Second)), Capacity: 8 * gib, RootWorkingSet: used, RootActiveFile: 0, PodsWorkingSet: used - gib, PodsActiveFile: 0,
				PodsLimit: 8 * gib, MemAvailable: 8*gib - used, RootMeminfo: pressure.Unknown, StallSome: pressure.Missing, StallFull: pressure.Missing}},
			Thresholds:  []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true, Bytes: 100 * mib}},
			Allocatable: 8 * gib, Explained: pressure.Share{},
		}
		p := judge.Pods{Now: at, Pods: []policy.Candidate{testPod("payment", 2*gib, 0), testPod("leak", leaked, 100*mib)}}
		if i%2 == 0 {
			w.Read(&p, j.Read(p))
		}
		v := j.Assess(l)
		if v.Level >= pressure.Alert && !w.Open() {
			w.Begin(at, j.State())
		} else {
			w.Look(at, &l, v)
		}
		if v.Now >= pressure.Evict {
			d := j.Decide(p)
			held := ""
			if decisions%3 == 1 {
				held = "cooldown"
			}
			w.Decide(&p, &d, held, fmt.Sprint(decisions))
			decisions++
		}
	}
	w.Event(begin, "oom-kill", map[string]string{"pod": "shop/leak"})
	return decisions
}

// record runs the writer over the run and returns the file.
func record(t *testing.T, o Options, seconds float64) (path string, decisions int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "recording.gz")
	o.Path = path
	if o.MaxBytes == 0 {
		o.MaxBytes = 16 << 20
	}
	w, err := NewWriter(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	w.queue = make(chan chunk, 1<<16) // a whole run at once
	decisions = run(w, seconds)
	w.End("the run is over")
	go func() { done <- w.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := w.Stats(); s.Fault != "" || s.Dropped > 0 {
		t.Fatalf("%+v", s)
	}
	return path, decisions
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestReplayIsTheSame(t *testing.T) {
	path, decisions := record(t, Options{Header: Header{Agent: "v1", Node: "n1"}}, 30)
	r, err := Replay(read(t, path), configure, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Episodes) != 1 || len(r.Damages) > 0 {
		t.Fatalf("%d episodes, damages %v", len(r.Episodes), r.Damages)
	}
	e := &r.Episodes[0]
	if e.Different != 0 || !r.Identical() {
		t.Errorf("%d answers differ; first %s", e.Different, e.First)
	}
	if decisions == 0 || e.Decisions != decisions || e.Looks < 100 || e.Rankings < 50 || !e.Complete || len(e.Events) != 1 {
		t.Errorf("%d looks, %d rankings, %d of %d decisions, complete %v, %d events", e.Looks, e.Rankings, e.Decisions, decisions, e.Complete, len(e.Events))
	}
	named := false
	for _, s := range e.Steps {
		named = named || s.Recorded.Victims == "shop/leak"
	}
	if !named {
		t.Errorf("no step names the victim: %+v", e.Steps)
	}
	var out bytes.Buffer
	if err := WriteReport(&out, r); err != nil || !strings.Contains(out.String(), "shop/leak") || !strings.Contains(out.String(), "are the recorded ones") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestReplayFindsADifference: another core, here one with another threshold in place of the recorded one, is noticed.
func TestReplayFindsADifference(t *testing.T) {
	path, _ := record(t, Options{}, 30)
	r, err := Replay(read(t, path), func(Header) (judge.Config, error) {
		c := config()
		c.Pressure.TargetPercent = 70
		return c, nil
	}, nil)
	if err != nil || r.Identical() || r.Episodes[0].First == "" {
		t.Errorf("identical %v, %v", r.Identical(), err)
	}
}

func TestReplayWithAnotherConfig(t *testing.T) {
	path, _ := record(t, Options{}, 30)
	for _, tc := range []struct {
		name    string
		change  func(c *judge.Config)
		changed bool
	}{
		{"the same", func(*judge.Config) {}, false},
		{"the leaking pod is protected", func(c *judge.Config) { c.Policy.ProtectedNamespaces = []string{"shop"} }, true},
		{"a later alert", func(c *judge.Config) { c.Pressure.AlertPercent = 99 }, false}, // by ETA it is an alert all the same
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := Replay(read(t, path), configure, func(Header) (judge.Config, error) {
				c := config()
				tc.change(&c)
				return c, nil
			})
			if err != nil || !r.Identical() {
				t.Fatalf("identical %v, %v", r.Identical(), err)
			}
			changed := slices.ContainsFunc(r.Episodes, func(e Episode) bool {
				return slices.ContainsFunc(e.Steps, func(s Step) bool { return s.Other != nil && s.Recorded.differs(s.Other) })
			})
			if changed != tc.changed {
				t.Errorf("changed %v, want %v: %+v", changed, tc.changed, r.Episodes[0].Steps)
			}
			var out bytes.Buffer
			if err := WriteReport(&out, r); err != nil || strings.Contains(out.String(), "other: ") != tc.changed {
				t.Errorf("%v\n%s", err, out.String())
			}
		})
	}
}

// TestEpisodesGoOn: an episode that begins in the middle of pressure replays like one that began with it.
func TestEpisodesGoOn(t *testing.T) {
	path, _ := record(t, Options{}, 20)
	first := read(t, path)
	r, err := Replay(append(first, first...), configure, nil)
	if err != nil || len(r.Episodes) != 2 || !r.Identical() {
		t.Fatalf("%d episodes, %v", len(r.Episodes), err)
	}
}

func TestDamagedRecordings(t *testing.T) {
	path, _ := record(t, Options{}, 30)
	whole := read(t, path)
	plain := func(lines string) []byte {
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		z.Write([]byte(lines))
		z.Close()
		return b.Bytes()
	}
	for _, tc := range []struct {
		name     string
		data     []byte
		err      string
		episodes int
		damages  int
	}{
		{"empty", nil, "not a recording of Spillway", 0, 0},
		{"text", []byte("hello, this is a log\n"), "not a recording of Spillway", 0, 0},
		{"another gzip file", plain("hello\n"), "not a recording of Spillway", 0, 0},
		{"other JSON", plain(`{"a":1}` + "\n"), "not a recording of Spillway", 0, 0},
		{"of a later version", plain(`{"start":{"format":"spillway recording","version":9}}` + "\n"), "version 9, this program reads versions 1 to 3", 0, 0},
		{"cut off", whole[:len(whole)*2/3], "", 1, 1},
		{"cut off early", whole[:20], "nothing of it can be read", 0, 1},
		{"cut off, and another behind it", append(bytes.Clone(whole[:len(whole)*2/3]), whole...), "", 2, 1},
		{"a byte is wrong in the middle", flip(whole, len(whole)/2), "", 1, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := Replay(tc.data, configure, nil)
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("error %v, want %q", err, tc.err)
			}
			if tc.err != "" && strings.Contains(tc.err, "not a") && !errors.Is(err, ErrForeign) {
				t.Errorf("%v is not ErrForeign", err)
			}
			if len(r.Episodes) != tc.episodes || len(r.Damages) != tc.damages || tc.damages == 0 && !r.Identical() { // a wrong byte may still be a line
				t.Errorf("%d episodes, damages %v, identical %v", len(r.Episodes), r.Damages, r.Identical())
			}
		})
	}
}

func flip(data []byte, at int) []byte {
	out := bytes.Clone(data)
	out[at] ^= 0x55
	return out
}

// TestWriterIsBounded: two parts, none over half of the size and its slack, and what they hold replays.
func TestWriterIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state", "recording.gz")
		w, err := NewWriter(Options{Path: path, MaxBytes: MinBytes})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		j := judge.New(config())
		pods := judge.Pods{Now: begin}
		for i := range 40 {
			c := testPod(fmt.Sprintf("p%d", i), uint64(i)*mib, float64(i))
			c.Pod.Labels["noise"] = strings.Repeat(fmt.Sprintf("%x", i*7919*i), 20)
			pods.Pods = append(pods.Pods, c)
		}
		begun := 0
		for i := 0; begun < 4; i++ {
			if !w.Open() {
				begun++
				w.Begin(begin, j.State())
			}
			for k := range pods.Pods {
				pods.Pods[k].Reading.Usage = uint64(i*k*7919) ^ uint64(k)<<20
				pods.Pods[k].Reading.Growth = float64(i*k) / 7
			}
			w.Read(&pods, j.Read(pods))
			time.Sleep(20 * time.Millisecond)
			synctest.Wait()
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if begun < 3 {
			t.Errorf("%d episodes: the parts never filled", begun)
		}
		for _, name := range []string{path, path + OldSuffix} {
			fi, err := os.Stat(name)
			if err != nil || fi.Size() > MinBytes/2+slackBytes+flushBytes || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", filepath.Base(name), fi, err)
			}
			r, err := Replay(read(t, name), configure, nil)
			if err != nil || !r.Identical() || r.Episodes[0].Rankings == 0 {
				t.Errorf("%s: %v", filepath.Base(name), err)
			}
		}
		if s := w.Stats(); s.Fault != "" || s.Dropped > 0 || s.Bytes == 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestWriterWithoutADisk: nothing waits, and the state says why.
func TestWriterWithoutADisk(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(Options{Path: filepath.Join(dir, "file", "recording.gz"), MaxBytes: MinBytes})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	run(w, 30)
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := w.Stats(); !strings.Contains(s.Fault, "make recording") || w.Open() {
		t.Errorf("%+v, open %v", s, w.Open())
	}
}

// TestWriterDrops: a disk that does not keep up breaks the episode off, and the next one begins whole.
func TestWriterDrops(t *testing.T) {
	w, err := NewWriter(Options{Path: filepath.Join(t.TempDir(), "recording.gz"), MaxBytes: MinBytes})
	if err != nil {
		t.Fatal(err)
	}
	run(w, 60) // nobody takes from the queue
	if s := w.Stats(); s.Dropped == 0 {
		t.Errorf("%+v after more than %d lines", s, queueLength)
	}
}

func TestWriterOptions(t *testing.T) {
	for _, o := range []Options{{}, {Path: "x"}, {Path: "x", MaxBytes: MinBytes - 1}, {MaxBytes: MinBytes}} {
		if _, err := NewWriter(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

func FuzzReplay(f *testing.F) {
	f.Add([]byte("hello"))
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(`{"start":{"format":"spillway recording","version":1}}` + "\n" + `{"look":{"samples":[{"At":1,"Capacity":5}]}}` + "\n" + `{"read":{"order":["x"]}}` + "\n"))
	z.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Replay(data, configure, configure)
		if r == nil {
			t.Fatal("no report")
		}
		if err == nil && len(r.Episodes) == 0 {
			t.Error("neither an error nor an episode")
		}
	})
}
