package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"spillway/agent/incident"
	"spillway/agent/ledger"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

func killAt(at time.Time, pod string) *status.OOMKill {
	limit := uint64(64 << 20)
	return &status.OOMKill{At: at, Namespace: "shop", Pod: pod, PodUID: "uid-" + pod, Container: "c", Process: "java", PID: 42, LimitBytes: &limit, LimitOf: "container"}
}

// A writer that does not keep up costs parts, which are counted, and never time of who puts them.
func TestQueueIsBounded(t *testing.T) {
	kept, err := ledger.Open(ledger.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	dropped := 0
	w, err := New(Options{Ledger: kept, Dropped: func() { dropped++ }})
	if err != nil {
		t.Fatal(err)
	}
	for range queueSize + 5 {
		w.Put(Record{})
	}
	if dropped != 5 {
		t.Errorf("%d dropped parts are counted, want 5", dropped)
	}
}

// A day of one incident each two minutes, in figures that look like noise, and 4,000 kills fit what the ledger may hold: none
// of them is pushed out, and the file stays small.
func TestADayOfIncidents(t *testing.T) {
	const incidents, killed, most = 720, 4000, 32 << 20
	dir := t.TempDir()
	l, err := ledger.Open(ledger.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	kills, err1 := l.Log(killLog, killBounds)
	log, err2 := l.Log(incidentLog, incidentBounds)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	confirmed := make(chan error, 800)
	pending := 0
	put := func(g *ledger.Log, at time.Time, data []byte) {
		t.Helper()
		if !g.Append(at, data, func(_ uint64, err error) { confirmed <- err }) {
			t.Fatal("dropped")
		}
		if pending++; pending == cap(confirmed) {
			for ; pending > 0; pending-- {
				if err := <-confirmed; err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	begin := time.Now().Add(-24 * time.Hour)
	bytes := 0
	for i := range incidents {
		at := begin.Add(time.Duration(i) * 2 * time.Minute)
		first, rest := dayIncident(r, i, at)
		for _, rec := range []incident.Record{{Incident: first}, {Incident: rest, Rest: true}} {
			data, err := incident.Encode(rec)
			if err != nil {
				t.Fatal(err)
			}
			bytes += len(data)
			put(log, at, data)
		}
	}
	for i := range killed {
		at := begin.Add(time.Duration(i) * 20 * time.Second)
		data, err := json.Marshal(killAt(at, fmt.Sprintf("leak-%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		put(kills, at, data)
	}
	for ; pending > 0; pending-- {
		if err := <-confirmed; err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	all, err := log.Newest(10_000)
	if err != nil || len(all) != 2*incidents {
		t.Errorf("%d of %d records, %v", len(all), 2*incidents, err)
	}
	allKills, err := kills.Newest(10_000)
	if err != nil || len(allKills) != killed {
		t.Errorf("%d of %d kills, %v", len(allKills), killed, err)
	}
	fi, err := os.Stat(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f KiB an incident, %.1f MiB of incidents; the file has %.1f MiB", float64(bytes)/incidents/1024, float64(bytes)/(1<<20), float64(fi.Size())/(1<<20))
	if fi.Size() > most || l.Stats().Dropped != 0 {
		t.Errorf("the file has %d bytes, %+v", fi.Size(), l.Stats())
	}
}

// dayIncident is as large as they are in practice: two minutes of seconds, twelve of full pace, half a minute after it, one pod,
// ten neighbours, four kills.
func dayIncident(r *rand.Rand, n int, at time.Time) (first, rest *incident.Incident) {
	const boot = 1000 * time.Second
	noise := func() pressure.Bytes { return pressure.Bytes(r.Int64N(64 << 20)) }
	var node []pressure.Sample
	var pod []incident.PodPoint
	for s := -168; s <= 40; s++ {
		when := boot + time.Duration(s)*time.Second
		node = append(node, pressure.Sample{At: when, Capacity: 8 << 30, MemAvailable: 2<<30 + noise(), RootWorkingSet: 5<<30 + noise(), RootActiveFile: 1<<30 + noise(), PodsWorkingSet: 4<<30 + noise(),
			PodsActiveFile: 1<<29 + noise(), StallSome: pressure.Count(when.Microseconds() / 9), StallFull: pressure.Count(when.Microseconds() / 99)})
		pod = append(pod, incident.PodPoint{At: when, WorkingSet: 1<<28 + noise(), Anon: 1<<27 + noise(), ActiveFile: 1<<26 + noise(), Usage: 1<<29 + noise()})
	}
	thresholds := []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true, Bytes: 100 << 20}}
	k := killAt(at, fmt.Sprintf("leak-%d", n))
	who := incident.Subject{Namespace: k.Namespace, Pod: k.Pod, UID: k.PodUID, Container: "c"}
	tr := incident.Trigger{Kind: incident.OOMKill, At: at, Subject: who, Text: status.KillText(k), Own: true}
	first = &incident.Incident{Version: incident.Version, Key: fmt.Sprint(n), Kind: incident.OOMKill, Subject: who, Node: "node-1", Began: at, State: incident.Open,
		Counts: map[incident.Kind]int{incident.OOMKill: 1}, Triggers: []incident.Trigger{tr}, Kills: []status.OOMKill{*k},
		Pressure: status.Pressure{Level: "calm", Signal: "memory.available", Reason: "used 61.0 %", Gates: []status.Gate{{Name: "used", Detail: "used 61.0 %"}, {Name: "eta", Detail: "nothing grows"}}},
		Series:   incident.NodeSeries(node[:169], thresholds, boot), Pods: []incident.Pod{{Subject: who, QoS: "Burstable", Series: incident.PodSeries(pod[:169], boot)}}}
	for i := range 10 {
		first.Neighbours = append(first.Neighbours, incident.Neighbour{Namespace: "shop", Pod: fmt.Sprintf("web-%d", i), UID: fmt.Sprintf("%08x-%d", r.Uint32(), i), QoS: "Burstable", WorkingSet: uint64(noise()), Growth: float64(noise())})
	}
	rest = &incident.Incident{Version: incident.Version, Key: first.Key, Kind: first.Kind, Subject: who, Node: "node-1", Began: at, Ended: at.Add(40 * time.Second), State: incident.Complete,
		Counts: map[incident.Kind]int{incident.OOMKill: 4}, Triggers: []incident.Trigger{tr, tr, tr, tr}, Kills: []status.OOMKill{*k, *k, *k, *k},
		Series: incident.NodeSeries(node[168:], thresholds, boot), Pods: []incident.Pod{{Subject: who, Series: incident.PodSeries(pod[168:], boot)}}}
	return first, rest
}
