package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/agent/incident"
	"spillway/agent/status"
	"spillway/test/oomtest"
)

// A whole agent on a node of real cgroups: a pod leaks into a limit of 64 MiB, the kernel kills, and the socket tells the story
// with what the rings hold of the pod and the node.
func TestIncidentOfAKernelKill(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make cgroups and to see OOM kills")
	}
	oomtest.Alone(t) // in a burst an incident takes in the kills of others
	n := newLatencyNode(t, 2)
	dir := t.TempDir()
	a := latencyAgent(t, n, dir)
	stop := running(t, a.Run)
	defer stop()
	socket := filepath.Join(dir, "socket")
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if s := a.snapshot.Load(); s != nil && len(s.Pods) == 2 && s.Pods[0].Fresh && s.Pods[1].Fresh {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("the pods are not read: %+v", a.snapshot.Load())
		}
	}
	p := n.pods[0]
	file := "memory.max"
	if a.tree.MemoryVersion() == 1 {
		file = "memory.limit_in_bytes"
	}
	if err := os.WriteFile(filepath.Join(n.dir(p), p.container, file), []byte("67108864"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer n.leak(p, 12<<20)()
	var found *status.Event
	q := status.EventQuery{Since: "0.0", Wait: 20 * time.Second}
	for limit := time.Now().Add(40 * time.Second); found == nil; {
		l, err := status.GetEvents(t.Context(), socket, q)
		if err != nil || time.Now().After(limit) {
			t.Fatalf("no incident: %v; kills %+v, sources %+v", err, a.snapshot.Load().OOMKills, a.sources.List())
		}
		for i, e := range l.Events {
			if e.Type == status.EventIncident && e.Pod == p.name {
				found = &l.Events[i]
			}
		}
		q.Since = l.Next
	}
	read := func() *incident.Incident {
		t.Helper()
		d, err := status.GetEvent(t.Context(), socket, found.ID)
		if err != nil {
			t.Fatal(err)
		}
		i := new(incident.Incident)
		if err := json.Unmarshal(d.Incident, i); err != nil {
			t.Fatal(err)
		}
		return i
	}
	i := read()
	if i.Kind != incident.OOMKill || i.Subject.String() != "shop/"+p.name || len(i.Kills) != 1 || i.State != incident.Open || i.Pressure.MarginBytes == nil {
		t.Fatalf("%+v", i)
	}
	if len(i.Pods) != 1 || len(i.Pods[0].Series.At) < 5 || len(i.Series.At) < 5 || i.Lowest == nil {
		t.Fatalf("series of %d pods, node %d points", len(i.Pods), len(i.Series.At))
	}
	used := i.Pods[0].Series.Column("workingSet")
	low, high := used[0], used[0]
	for _, v := range used {
		low, high = min(low, v), max(high, v)
	}
	if low == incident.None || low > 16<<10 || high < 32<<10 || high > 66<<10 {
		t.Errorf("the pod's working set goes from %d to %d KiB, want a leak up to 64 MiB: %v", low, high, used)
	}
	if story := incident.Story(i, time.Local); !strings.Contains(story, "working set of shop/"+p.name) || !strings.Contains(story, "the kernel killed") && !strings.Contains(story, "The kernel killed") {
		t.Errorf("%s", story)
	} else {
		t.Logf("\n%s", story)
	}
	stop()
	records, err := func() (int, error) { // what was open is on disk with its end
		l, end := recordedLife(t, filepath.Join(dir, "state"), os.Stderr)
		defer end()
		d, err := l.a.events.Get(t.Context(), found.ID)
		if err == nil && !strings.Contains(string(d.Incident), `"state":"complete"`) {
			t.Errorf("after a stop: %s", d.Incident)
		}
		return len(d.Incident), err
	}()
	if err != nil || records == 0 {
		t.Errorf("after a restart: %d bytes, %v", records, err)
	}
}
