package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/agent/config"
	"spillway/agent/incident"
	"spillway/agent/journal"
	"spillway/agent/judge"
	"spillway/agent/ledger"
	"spillway/agent/metrics"
	"spillway/agent/observe"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/report"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/cri"
)

// recordedLife is an agent with as much as its flight recorder needs, with its ledger and its writer at work. end stops it as
// Run does.
func recordedLife(t testing.TB, dir string, out io.Writer) (l *loop, end func()) {
	t.Helper()
	tree, err := cgroup.Open(cgroup.Options{Root: "../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup", AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{cfg: config.Default(), opts: Options{StateDir: dir, NodeName: "node-1"}, log: slog.New(slog.NewJSONHandler(out, nil)), tree: tree, begin: time.Now(), kills: make(chan status.OOMKill, 256)}
	a.sources = status.NewSources(a.log, journal.MessageSource)
	a.metrics = metrics.New("1.0", metrics.DefaultPods, a.snapshot.Load)
	if a.samples, err = sampler.New(sampler.Options{Tree: tree}); err != nil {
		t.Fatal(err)
	}
	if a.mapper, err = podmap.New(podmap.Options{Tree: tree, Clock: a.samples.Now, Containers: func() []cri.Container { return nil }, Pods: func() []policy.Pod { return nil }}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.openLedger(), a.openEvents()); err != nil {
		t.Fatal(err)
	}
	stop := running(t, a.ledger.Run)
	written := make(chan error, 1)
	go func() { written <- a.events.Run() }()
	l = &loop{a: a, judge: judge.New(a.judgeConfig()), readings: map[string]policy.Reading{}, said: map[string]time.Time{}, limits: observe.NewLimits(observe.LimitsOptions{}), history: observe.NewHistories(nil)}
	return l, func() {
		l.endIncidents(time.Now())
		werr := <-written
		stop()
		if err := errors.Join(werr, a.ledger.Close(), tree.Close()); err != nil {
			t.Error(err)
		}
	}
}

func killAt(at time.Time, pod string) *status.OOMKill {
	limit := uint64(64 << 20)
	return &status.OOMKill{At: at, Namespace: "shop", Pod: pod, PodUID: "uid-" + pod, Container: "c", Process: "java", PID: 42, LimitBytes: &limit, LimitOf: "container"}
}

// wait asks for events until there are as many.
func waitEvents(t *testing.T, a *Agent, q status.EventQuery, n int) status.EventList {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	q.Wait = 0
	var all status.EventList
	for {
		l, err := a.events.List(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		all.Events, all.Next = append(all.Events, l.Events...), l.Next
		if len(all.Events) >= n {
			return all
		}
		q.Since, q.Wait = l.Next, 10*time.Second
	}
}

func told(t *testing.T, a *Agent, id string) (status.EventDetail, *incident.Incident) {
	t.Helper()
	d, err := a.events.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Incident) == 0 {
		return d, nil
	}
	i := new(incident.Incident)
	if err := json.Unmarshal(d.Incident, i); err != nil {
		t.Fatal(err)
	}
	return d, i
}

// Kills become lines and an incident; who follows hears of each once, in order; an incident is whole when its time is over, and
// after a restart all is there.
func TestIncidentOfKills(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	var log bytes.Buffer
	now := time.Now()
	l, end := recordedLife(t, dir, &log)
	a := l.a
	if got, err := a.events.List(t.Context(), status.EventQuery{}); err != nil || len(got.Events) != 0 || got.Next != "0.0" {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range 3 {
		k := killAt(now.Add(time.Duration(i)*time.Second), "leak")
		a.report(*k)
		l.tellRest(k.At, report.Kill{OOMKill: k})
	}
	list := waitEvents(t, a, status.EventQuery{Since: "0.0", Limit: 10}, 4)
	ids := map[string]status.Event{}
	for _, e := range list.Events {
		ids[e.ID] = e
	}
	if len(ids) != 4 || ids["inc-1"].Kind != "oom-kill" || ids["inc-1"].Subject != "shop/leak" || ids["oom-3"].Type != status.EventKill || ids["oom-3"].Text == "" {
		t.Fatalf("%+v", list.Events)
	}
	if next, err := a.events.List(t.Context(), status.EventQuery{Since: list.Next, Wait: time.Millisecond}); err != nil || len(next.Events) != 0 || next.Next != list.Next {
		t.Errorf("after the last: %+v, %v", next, err)
	}
	if _, i := told(t, a, "inc-1"); i.State != incident.Open || i.Counts[incident.OOMKill] != 1 || i.ID != "inc-1" || i.Node != "node-1" {
		t.Errorf("while it goes on: %+v", i)
	}
	l.followIncidents(now.Add(2 * time.Second))
	l.followIncidents(now.Add(33 * time.Second))
	for range 100 { // the second part makes no line that could be waited for
		if _, i := told(t, a, "inc-1"); i.State == incident.Complete {
			break
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		a.events.List(ctx, status.EventQuery{Since: list.Next, Wait: time.Second})
		cancel()
	}
	check := func(a *Agent) {
		t.Helper()
		d, i := told(t, a, "inc-1")
		if i.State != incident.Complete || i.Counts[incident.OOMKill] != 3 || len(i.Kills) != 3 || i.Kills[2].Process != "java" || !i.Ended.Equal(now.Add(33*time.Second)) {
			t.Errorf("%+v", i)
		}
		if story := incident.Story(i, time.UTC); !strings.Contains(story, "OOM kill, shop/leak") || !strings.Contains(story, "3 OOM kills") {
			t.Errorf("%s", story)
		}
		if d.Event.ID != "inc-1" {
			t.Errorf("%+v", d.Event)
		}
		kill, i := told(t, a, "oom-2")
		if kill.Kill.PID != 42 || kill.Event.Incident != "inc-1" || i == nil || i.ID != "inc-1" {
			t.Errorf("%+v", kill.Event)
		}
	}
	check(a)
	end()
	for _, id := range []string{"inc-1", "oom-1", "oom-2", "oom-3"} {
		if strings.Count(log.String(), `"event":"`+id+`"`) != 1 {
			t.Errorf("%s is not once in the log: %s", id, &log)
		}
	}
	l, end = recordedLife(t, dir, io.Discard)
	defer end()
	check(l.a)
	if got := l.a.events.Newest(); len(got) != 1 || got[0].ID != "inc-1" {
		t.Errorf("newest: %+v", got)
	}
	if got, err := l.a.events.List(t.Context(), status.EventQuery{Limit: 2}); err != nil || len(got.Events) != 2 || got.Events[1].ID != "oom-3" || got.Next != list.Next && !strings.HasSuffix(got.Next, ".3") {
		t.Errorf("newest two: %+v, %v", got, err)
	}
	if got, err := l.a.events.List(t.Context(), status.EventQuery{Since: "oom-1"}); err != nil || len(got.Events) != 2 || got.Events[0].ID != "oom-2" {
		t.Errorf("since oom-1: %+v, %v", got, err)
	}
}

// A level that becomes critical is an incident without a pod; an agent that ends in between leaves one that says so.
func TestIncidentOfANode(t *testing.T) {
	dir := t.TempDir()
	l, end := recordedLife(t, dir, io.Discard)
	now := time.Now()
	l.verdict = pressure.Verdict{Now: pressure.Calm}
	l.followIncidents(now)
	l.verdict = pressure.Verdict{Now: pressure.Critical, Level: pressure.Critical, Reason: "ETA 0.3 s", ETA: 300 * time.Millisecond}
	l.followIncidents(now.Add(time.Second))
	l.followIncidents(now.Add(2 * time.Second)) // it stays
	if got := waitEvents(t, l.a, status.EventQuery{Since: "0.0"}, 1); got.Events[0].Kind != "critical" || got.Events[0].Subject != "node" {
		t.Errorf("%+v", got.Events)
	}
	end()
	l, end = recordedLife(t, dir, io.Discard)
	if _, i := told(t, l.a, "inc-1"); i.State != incident.Complete || !strings.Contains(i.Note, "stopped") || i.Counts[incident.Critical] != 1 {
		t.Errorf("after a stop: %+v", i)
	}
	l.tellRest(now, report.Kill{OOMKill: killAt(now.Add(time.Minute), "leak")})
	waitEvents(t, l.a, status.EventQuery{Since: "inc-1"}, 1)
	l.flight.tracker.End() // as if it were killed
	end()
	l, end = recordedLife(t, dir, io.Discard)
	defer end()
	list := waitEvents(t, l.a, status.EventQuery{}, 2)
	d, i := told(t, l.a, list.Events[len(list.Events)-1].ID)
	if i.State != incident.Broken || d.Event.Subject != "shop/leak" || !strings.Contains(incident.Story(i, time.UTC), "the agent ended before the rest was written") {
		t.Errorf("after a crash: %+v", i)
	}
}

// ends are ended containers, of which the newest are kept.
type ends struct {
	endings
	done    []status.Exit
	pending map[string]bool // by pod UID
}

const (
	keptEnds = 32
	burst    = keptEnds + 8
)

func (e *ends) Since(from time.Time) (out []status.Exit, n int) {
	for i, x := range e.done {
		if x.At.Before(from) {
			continue
		}
		if n++; i >= len(e.done)-keptEnds {
			out = append(out, x)
		}
	}
	return out, n
}

func (e *ends) Pending(about func(uid string) bool) bool {
	for uid := range e.pending {
		if about(uid) {
			return true
		}
	}
	return false
}

// What ended in the time of an incident is in its story, and what ended before is not; it stays open until the cause is known of
// each container of its pod that ended.
func TestIncidentHasTheExits(t *testing.T) {
	dir := t.TempDir()
	l, end := recordedLife(t, dir, io.Discard)
	now := time.Now()
	e := &ends{pending: map[string]bool{}}
	l.a.exits = e
	ended := func(uid string, at time.Time) {
		e.done = append(e.done, status.Exit{Namespace: "shop", Pod: strings.TrimPrefix(uid, "uid-"), PodUID: uid, Container: "c", ContainerID: uid + at.String(), Code: 137, Reason: "Error", At: at})
	}
	ended("uid-old", now.Add(-incident.Before-5*time.Second))
	ended("uid-early", now.Add(-incident.Before+5*time.Second))
	l.tellRest(now, report.Kill{OOMKill: killAt(now, "leak")})
	waitEvents(t, l.a, status.EventQuery{Since: "0.0"}, 1)
	if _, i := told(t, l.a, "inc-1"); len(i.Exits) != 1 || i.Exits[0].Pod != "early" || i.MoreExits != 0 {
		t.Errorf("when it begins: %+v and %d more", i.Exits, i.MoreExits)
	}
	ended("uid-leak", now.Truncate(time.Second))
	for n := range burst {
		ended(fmt.Sprint("uid-", n), now.Add(time.Duration(n)*time.Second/4))
	}
	ended("uid-leak", now.Add(20*time.Second))
	ended("uid-nobody-knows-when", time.Time{})
	e.pending["uid-leak"], e.pending["uid-other"] = true, true
	l.followIncidents(now.Add(40 * time.Second))
	if _, i := told(t, l.a, "inc-1"); i.State != incident.Open {
		t.Errorf("it is over while an end of its pod waits for its cause: %+v", i)
	}
	delete(e.pending, "uid-leak")
	l.followIncidents(now.Add(41 * time.Second))
	end()
	l, end = recordedLife(t, dir, io.Discard)
	defer end()
	d, i := told(t, l.a, "inc-1")
	// All are counted, also those that the burst pushed out of what is kept.
	if n := len(i.Exits) + i.MoreExits; i.State != incident.Complete || n != 1+1+burst+1 || len(i.Exits) != 8 {
		t.Errorf("%d exits and %d more", len(i.Exits), i.MoreExits)
	}
	own := 0
	for _, x := range i.Exits {
		if x.PodUID == "uid-leak" {
			own++
		}
		if x.PodUID == "uid-old" || x.At.IsZero() {
			t.Errorf("%+v is part of it", x)
		}
	}
	story := incident.Story(i, time.UTC)
	if own == 0 || !strings.Contains(story, "shop/leak/c") || !strings.Contains(story, fmt.Sprintf("and %d more\n", i.MoreExits)) {
		t.Errorf("%d exits of its own pod\n%s", own, story)
	}
	if text := string(d.Incident); !strings.Contains(text, `"exits":[{`) || !strings.Contains(text, `"moreExits":`) {
		t.Error(text)
	}
}

// Who follows across a restart sees what the new agent's ledger has and no event twice; a ledger that begins anew, because
// somebody took the old one away, has news from its first record on.
func TestFollowAcrossLedgers(t *testing.T) {
	dir := t.TempDir()
	l, end := recordedLife(t, dir, io.Discard)
	now := time.Now()
	for i := range 3 {
		l.a.report(*killAt(now.Add(time.Duration(i)), "leak"))
	}
	list := waitEvents(t, l.a, status.EventQuery{Since: "0.0"}, 3)
	end()
	l, end = recordedLife(t, dir, io.Discard)
	l.a.report(*killAt(now.Add(time.Second), "later"))
	if got := waitEvents(t, l.a, status.EventQuery{Since: list.Next}, 1); len(got.Events) != 1 || got.Events[0].ID != "oom-4" {
		t.Errorf("after a restart: %+v", got.Events)
	}
	end()
	l, end = recordedLife(t, t.TempDir(), io.Discard)
	defer end()
	if got, err := l.a.events.List(t.Context(), status.EventQuery{Since: list.Next}); err != nil || len(got.Events) != 0 || got.Next != "0.0" {
		t.Errorf("in an empty ledger: %+v, %v", got, err)
	}
	l.a.report(*killAt(now, "new"))
	if got := waitEvents(t, l.a, status.EventQuery{Since: list.Next}, 1); len(got.Events) != 1 || got.Events[0].Subject != "shop/new" {
		t.Errorf("in another ledger: %+v", got.Events)
	}
}

func TestEventsThatAreNotThere(t *testing.T) {
	l, end := recordedLife(t, t.TempDir(), io.Discard)
	defer end()
	a := l.a
	if _, err := a.events.Get(t.Context(), "inc-1"); !errors.Is(err, status.ErrNoEvent) || !strings.Contains(err.Error(), "none was recorded yet") {
		t.Errorf("%v", err)
	}
	now := time.Now()
	for i := range 4 {
		a.report(*killAt(now.Add(time.Duration(i)), fmt.Sprintf("p%d", i)))
	}
	l.tellRest(now, report.Kill{OOMKill: killAt(now, "p0")})
	waitEvents(t, a, status.EventQuery{Since: "0.0"}, 5)
	for id, want := range map[string]string{"inc-9": "there are inc-1, oom-1 to oom-4 (4)", "oom-0": "no such event oom-0", "evi-1": "no such event evi-1"} {
		if _, err := a.events.Get(t.Context(), id); !errors.Is(err, status.ErrNoEvent) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", id, err, want)
		}
	}
	for _, id := range []string{"", "inc", "inc-", "inc--1", "7", "foo-1", "inc-1x"} {
		if _, err := a.events.Get(t.Context(), id); !errors.Is(err, status.ErrQuery) {
			t.Errorf("%q: %v", id, err)
		}
		if id != "" {
			if _, err := a.events.List(t.Context(), status.EventQuery{Since: id}); !errors.Is(err, status.ErrQuery) {
				t.Errorf("since %q: %v", id, err)
			}
		}
	}
	if _, err := a.events.List(t.Context(), status.EventQuery{Since: "oom-77"}); !errors.Is(err, status.ErrNoEvent) {
		t.Errorf("%v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.events.List(gone, status.EventQuery{Since: "oom-4", Wait: time.Minute}); !errors.Is(err, context.Canceled) && err != nil {
		t.Errorf("%v", err)
	}
}

// The two halves of TestKilledWhileRecording find each other by the environment.
const incidentsWriter = "SPILLWAY_INCIDENTS_WRITER"

// TestIncidentsWriter is the agent that TestKilledWhileRecording kills.
func TestIncidentsWriter(t *testing.T) {
	dir := os.Getenv(incidentsWriter)
	if dir == "" {
		t.Skip("the other half of TestKilledWhileRecording")
	}
	l, _ := recordedLife(t, dir, os.Stdout)
	base := time.Now()
	for n := 0; ; n++ {
		now := base.Add(time.Duration(n) * time.Minute) // each begins an incident
		k := killAt(now, fmt.Sprintf("p%d", n%40))
		l.a.report(*k)
		l.tellRest(now, report.Kill{OOMKill: k})
		l.followIncidents(now.Add(31 * time.Second))
		for l.a.events.Waiting() > 16 {
			if err := l.a.ledger.Document("pace").Save([]byte("x")); err != nil { // waits for the disk
				t.Fatal(err)
			}
		}
	}
}

// kill -9 amid a burst loses nothing that the log said to be recorded, and what is half written says so.
func TestKilledWhileRecording(t *testing.T) {
	dir := t.TempDir()
	recorded := map[string]string{}
	for life := range 6 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestIncidentsWriter$", "-test.timeout=2m")
		cmd.Env = append(os.Environ(), incidentsWriter+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, read := bufio.NewScanner(out), 0
		for lines.Scan() {
			var line struct{ Msg, Event, Subject, Error string }
			if json.Unmarshal(lines.Bytes(), &line) != nil {
				continue // the test binary's own words, or a line that was cut
			}
			if line.Error != "" {
				t.Errorf("life %d: %s: %s", life, line.Msg, line.Error)
			}
			if line.Msg != "event recorded" {
				continue
			}
			recorded[line.Event] = line.Subject
			if read++; read == 5+23*life {
				go cmd.Process.Kill() // while it writes on; what it still said is read to the end
			}
		}
		cmd.Wait()
		if read < 5+23*life {
			t.Fatalf("life %d ended by itself after %d events", life, read)
		}
		l, end := recordedLife(t, dir, io.Discard)
		if s := l.a.ledger.SetAside(); s != "" {
			t.Fatalf("set aside %s", s)
		}
		states := map[incident.State]int{}
		for id, subject := range recorded {
			d, i := told(t, l.a, id)
			if d.Event.Subject != subject {
				t.Errorf("life %d: %s is about %s, was recorded as %s", life, id, d.Event.Subject, subject)
			}
			if d.Event.Type == status.EventIncident {
				states[i.State]++
			}
		}
		if states[incident.Open] > 0 || life == 5 && states[incident.Complete] == 0 {
			t.Errorf("life %d: %v", life, states)
		}
		end()
		if life == 5 {
			t.Logf("%d events recorded in 6 lives, incidents %v", len(recorded), states)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, ledger.FileName)); err != nil {
		t.Error(err)
	}
}

// BenchmarkNote is what a trigger costs the loop.
func BenchmarkNote(b *testing.B) {
	l, end := recordedLife(b, b.TempDir(), io.Discard)
	defer end()
	now, n := time.Now(), 0
	for b.Loop() {
		n++
		at := now.Add(time.Duration(n) * time.Hour)
		l.tellRest(at, report.Kill{OOMKill: killAt(at, "leak")})
		l.flight.tracker.End()
		clear(l.flight.cases)
	}
}
