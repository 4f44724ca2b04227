package incident

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"spillway/agent/pressure"
	"spillway/agent/status"
)

var update = flag.Bool("update", false, "write the golden files")

func ptr[T any](v T) *T { return &v }

var began = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const (
	mib  = 1 << 20
	boot = 1000 * time.Second // of the beginning
)

// someIncident is a leak that hits its own limit, in both parts: with readings each second, and close to the beginning more
// often. noise, in bytes, makes every figure another one.
func someIncident(noise int64) (first, rest *Incident) {
	r := rand.New(rand.NewPCG(1, uint64(noise)))
	jitter := func() pressure.Bytes {
		if noise == 0 {
			return 0
		}
		return pressure.Bytes(r.Int64N(noise))
	}
	thresholds := []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true, Bytes: 100 * mib}, {Signal: pressure.MemAvailable, Hard: true, Bytes: 100 * mib}}
	node := func(at time.Duration) pressure.Sample {
		grown := pressure.Bytes(max(0, 180+at.Seconds()-boot.Seconds())) * mib
		return pressure.Sample{At: at, Capacity: 8 << 30, MemAvailable: 3<<30 - grown + jitter(), RootWorkingSet: 5<<30 + grown + jitter(), RootActiveFile: 1<<30 + jitter(),
			PodsWorkingSet: 4<<30 + grown + jitter(), PodsActiveFile: 512*mib + jitter(), StallSome: pressure.Count(at.Microseconds()/100) + pressure.Count(jitter()%1000),
			StallFull: pressure.Count(at.Microseconds() / 1000)}
	}
	pod := func(at time.Duration) PodPoint {
		grown := pressure.Bytes(max(0, 180+at.Seconds()-boot.Seconds())) * mib
		return PodPoint{At: at, WorkingSet: 64*mib + grown + jitter(), Anon: 50*mib + grown + jitter(), ActiveFile: 10*mib + jitter()/8, Usage: 70*mib + grown}
	}
	var nodes, fastNodes []pressure.Sample
	var pods, fastPods []PodPoint
	for at := boot - 200*time.Second; at <= boot+40*time.Second; at += time.Second {
		nodes, pods = append(nodes, node(at)), append(pods, pod(at))
	}
	for at := boot - 12*time.Second; at <= boot; at += 20 * time.Millisecond {
		fastNodes, fastPods = append(fastNodes, node(at)), append(fastPods, pod(at))
	}
	atNode, atPod := func(x *pressure.Sample) time.Duration { return x.At }, func(x *PodPoint) time.Duration { return x.At }
	before := Window{Began: boot, From: boot - Before, To: boot}
	after := Window{Began: boot, From: boot, To: boot + 40*time.Second}
	who := Subject{Namespace: "shop", Pod: "cart-5fc8ff689d-lp4g5", UID: "u1", Container: "cart"}
	kill := status.OOMKill{At: began, Namespace: "shop", Pod: who.Pod, PodUID: "u1", Container: "cart", Process: "java", PID: 4242, AnonBytes: ptr(uint64(230 * mib)), LimitBytes: ptr(uint64(256 * mib)), LimitOf: "container"}
	subjects := Pod{Subject: who, QoS: "Burstable", Request: ptr(uint64(128 * mib)), Limit: ptr(uint64(256 * mib)), Slopes: SlopesOf(Choose(pods, fastPods, atPod, before, true)),
		Series: PodSeries(Choose(pods, fastPods, atPod, before, true), boot)}
	first = &Incident{Version: Version, Key: "20260301-110000.000-1", Kind: OOMKill, Subject: who, Node: "node-1", Began: began, State: Open,
		Counts: map[Kind]int{OOMKill: 1}, Triggers: []Trigger{{Kind: OOMKill, At: began, Subject: who, Text: status.KillText(&kill), Own: true}}, Kills: []status.OOMKill{kill},
		Pressure: status.Pressure{Level: "calm", LevelNow: "calm", Reason: "used 61.0 %", Signal: "memory.available", MarginBytes: ptr(int64(2700 * mib)), UsedPercent: ptr(61.0), LeadSeconds: 31, Cause: "none",
			Thresholds: []status.Threshold{{Signal: "memory.available", Hard: true, LimitBytes: ptr(int64(100 * mib)), AvailableBytes: ptr(int64(2800 * mib)), MarginBytes: ptr(int64(2700 * mib)), Source: "/configz"},
				{Signal: "MemAvailable", Hard: true, LimitBytes: ptr(int64(100 * mib)), Source: "built in"}}},
		Lowest: &Low{int64(2700 * mib), began}, Series: NodeSeries(Choose(nodes, fastNodes, atNode, before, true), thresholds, boot), Pods: []Pod{subjects},
		Neighbours: Nearest([]Neighbour{{Namespace: "shop", Pod: "web-0", UID: "u2", QoS: "Guaranteed", WorkingSet: 800 * mib, Limit: ptr(uint64(1 << 30)), Protection: "priority"},
			{Namespace: "shop", Pod: who.Pod, UID: "u1", WorkingSet: 250 * mib}, {Namespace: "kube-system", Pod: "coredns-0", UID: "u3", QoS: "Burstable", WorkingSet: 30 * mib, Growth: 2 * mib, Protection: "namespace"}},
			func(uid string) bool { return uid == "u1" })}
	again := kill
	again.At, again.PID = began.Add(8*time.Second), 4250
	rest = &Incident{Version: Version, Key: first.Key, Kind: OOMKill, Subject: who, Node: "node-1", Began: began, Ended: began.Add(38500 * time.Millisecond), State: Complete,
		Counts: map[Kind]int{OOMKill: 2, Eviction: 1}, Triggers: []Trigger{first.Triggers[0], {Kind: OOMKill, At: again.At, Subject: who, Text: status.KillText(&again), Own: true},
			{Kind: Eviction, At: began.Add(9 * time.Second), Subject: Subject{Namespace: "shop", Pod: "batch\x1b[31m", UID: "u4"}, Text: "Spillway evicted the pod to get 1.00 GiB back: ETA 3.0 s"}},
		Kills: []status.OOMKill{kill, again}, Afterwards: &status.Pressure{Level: "alert", MarginBytes: ptr(int64(900 * mib))}, Lowest: &Low{300 * mib, began.Add(9 * time.Second)},
		Decisions: []status.Decision{{ID: "0301-110000-1", At: began.Add(8900 * time.Millisecond), State: "victim", Victim: "shop/batch\x1b[31m", Reason: "its memory ends the shortage, it grows most and the node has room for it elsewhere\nEVICTED"}},
		Actions: []Action{{At: began.Add(9 * time.Second), By: Spillway, What: "eviction", Pod: "shop/batch\x1b[31m", Text: "released, answer 201, 1.00 GiB expected, 1.10 GiB measured 4.2 s after the call"},
			{At: began.Add(10 * time.Second), By: Kubelet, What: "eviction", Pod: "shop/other", Text: "The node was low on resource: memory."}},
		Exits: []status.Exit{{At: began, Namespace: "shop", Pod: who.Pod, PodUID: "u1", Container: "cart", ContainerID: "c1", Code: 137, Reason: "OOMKilled", Source: "pod status", Cause: "oom",
			Certainty: "known", LimitOf: "container", LimitBytes: ptr(uint64(256 * mib)), How: "the kernel's OOM killer took process java (4242) of it at 12:00:00, and it ended with SIGKILL's code",
			Evidence: []string{"code 137, reason OOMKilled, ran 3m0s, restarted 0 times before"}, Next: "what takes the memory"},
			{At: began.Add(10 * time.Second), Namespace: "shop", Pod: "batch\x1b[31m", PodUID: "u4", Container: "main", Code: 143, Cause: "eviction", Certainty: "known", How: "its pod was evicted"}}, MoreExits: 3,
		Series: NodeSeries(Choose(nodes, fastNodes, atNode, after, false), thresholds, boot),
		Pods:   []Pod{{Subject: who, Series: PodSeries(Choose(pods, fastPods, atPod, Window{boot, boot - Before, after.To}, false), boot)}}}
	return first, rest
}

func TestStory(t *testing.T) {
	first, rest := someIncident(0)
	whole := Join(first, rest)
	broken := *first
	broken.State, broken.Note = Broken, "the agent ended before the rest was written"
	node := &Incident{Version: Version, Kind: Critical, Node: "node-1", Began: began, State: Open, Counts: map[Kind]int{Critical: 1},
		Triggers: []Trigger{{Kind: Critical, At: began, Text: "the level became critical: ETA 0.4 s"}},
		Pressure: status.Pressure{Level: "critical", Reason: "ETA 0.4 s", Signal: "memory.available", MarginBytes: ptr(int64(40 * mib)), UsedPercent: ptr(98.5), ETASeconds: ptr(0.4), SlopeBytes: 100 * mib, Cause: "pods"}}
	zone := time.FixedZone("CET", 3600)
	for name, i := range map[string]*Incident{"whole": whole, "broken": &broken, "node": node} {
		t.Run(name, func(t *testing.T) {
			i.ID = "inc-7"
			got := Story(i, zone)
			golden := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("story (-want +got, write it with -update):\n%s", d)
			}
			for n, line := range strings.Split(got, "\n") {
				if w := len([]rune(line)); w > Width {
					t.Errorf("line %d has %d columns: %s", n+1, w, line)
				}
				if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("line %d disturbs a terminal: %q", n+1, line)
				}
			}
		})
	}
}

// Nothing at all is told without inventing a figure.
func TestStoryOfNothing(t *testing.T) {
	got := Story(&Incident{}, time.UTC)
	for _, figure := range []string{"0 B", "0.0 %", "KiB"} {
		if strings.Contains(got, figure) {
			t.Errorf("%q in\n%s", figure, got)
		}
	}
}

// Both parts come back as they were, and fit: also with figures that look like noise.
func TestRecord(t *testing.T) {
	for _, noise := range []int64{0, 64 * mib} {
		first, rest := someIncident(noise)
		for part, i := range []*Incident{first, rest} {
			data, err := Encode(Record{Incident: i, Rest: part == 1})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("noise %d MiB, part %d: %d points, %d bytes", noise/mib, part+1, len(i.Series.At), len(data))
			got, err := Decode(data)
			if d := cmp.Diff(i, got.Incident); err != nil || d != "" || got.Rest != (part == 1) {
				t.Errorf("%v, (-was +is):\n%s", err, d)
			}
			if len(data) > 11<<10 {
				t.Errorf("%d bytes, want at most 11 KiB", len(data))
			}
		}
	}
	e := &status.Event{At: began, Type: status.EventEviction, Subject: "shop/cart", Text: "x"}
	data, err := Encode(Record{Eviction: e})
	if got, derr := Decode(data); err != nil || derr != nil || !reflect.DeepEqual(got.Eviction, e) {
		t.Errorf("%+v, %v, %v", got.Eviction, err, derr)
	}
}

// What would be too large loses points and lists, and never the head.
func TestRecordThatIsTooLarge(t *testing.T) {
	first, _ := someIncident(64 * mib)
	r := rand.New(rand.NewPCG(3, 4))
	for range 2 {
		first.Pods = append(first.Pods, first.Pods[0])
	}
	noise := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte('!' + r.IntN(90))
		}
		return string(b)
	}
	for name, tc := range map[string]func(){
		"series": func() {},
		"texts": func() {
			for range maxList {
				first.Triggers = append(first.Triggers, Trigger{Kind: OOMKill, At: began, Text: noise(maxTexts)})
				first.Decisions = append(first.Decisions, status.Decision{Reason: noise(maxTexts), Why: noise(maxTexts)})
				first.Actions = append(first.Actions, Action{Text: noise(maxTexts)})
				first.Kills = append(first.Kills, status.OOMKill{Cgroup: noise(4000)})
				first.Exits = append(first.Exits, status.Exit{How: noise(maxTexts), Evidence: []string{noise(maxTexts), noise(maxTexts)}})
			}
		},
		"gates": func() {
			first.Pressure.Gates = []status.Gate{{Detail: noise(30_000)}}
			first.Pressure.Reason = noise(20_000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc()
			data, err := Encode(Record{Incident: first})
			if err != nil || len(data) > MaxRecord {
				t.Fatalf("%d bytes, %v", len(data), err)
			}
			got, err := Decode(data)
			if err != nil || got.Incident.Key != first.Key || got.Incident.Subject != first.Subject || len(got.Incident.Triggers) == 0 || got.Incident.Note == "" && name != "series" {
				t.Errorf("%+v, %v", got.Incident, err)
			}
			if n := len(got.Incident.Exits) + got.Incident.MoreExits; n != len(first.Exits) {
				t.Errorf("%d exits are told of, want %d", n, len(first.Exits))
			}
		})
	}
	if _, err := Encode(Record{Eviction: &status.Event{Text: noise(100_000)}}); err == nil {
		t.Error("a line of 100 kB fits")
	}
}

func TestDecodeRefuses(t *testing.T) {
	text := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	pack := func(r *Record) []byte {
		data, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	first, _ := someIncident(0)
	newer, uneven := *first, *first
	newer.Version = Version + 1
	uneven.Series = Series{At: []int64{1, 2}, Columns: []Column{{"margin", KiB, []Value{1}}}}
	bomb := pack(&Record{Eviction: &status.Event{Text: strings.Repeat("a", 8<<20)}})
	for name, data := range map[string][]byte{
		"nothing": nil, "another format": {9, 1, 2}, "plain JSON": text(Record{}), "cut": pack(&Record{Incident: first})[:500], "newer": pack(&Record{Incident: &newer}),
		"uneven columns": pack(&Record{Incident: &uneven}), "bomb": bomb,
	} {
		if r, err := Decode(data); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if len(bomb) > 64<<10 {
		t.Errorf("the bomb has %d bytes", len(bomb))
	}
}

func FuzzDecode(f *testing.F) {
	first, rest := someIncident(0)
	for _, r := range []Record{{Incident: first}, {Incident: rest, Rest: true}, {Eviction: &status.Event{Text: "x"}}} {
		data, err := Encode(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decode(data)
		if err != nil || r.Incident == nil {
			return
		}
		Story(r.Incident, time.UTC)
		Story(Join(r.Incident, r.Incident), time.UTC)
	})
}

// FuzzStory takes JSON without the packing, which a fuzzer does not get through.
func FuzzStory(f *testing.F) {
	first, rest := someIncident(0)
	for _, i := range []*Incident{first, rest} {
		data, err := json.Marshal(i)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var i Incident
		if json.Unmarshal(data, &i) != nil || !i.Series.valid() {
			return
		}
		for n := range i.Pods {
			if !i.Pods[n].Series.valid() {
				return
			}
		}
		if s := Story(&i, time.UTC); strings.ContainsAny(s, "\x1b\r\x00") {
			t.Errorf("%q", s)
		}
	})
}

// The two parts make one series without a moment twice.
func TestJoin(t *testing.T) {
	first, rest := someIncident(0)
	whole := Join(first, rest)
	if whole.State != Complete || whole.Lowest.Bytes != 300*mib || len(whole.Kills) != 2 || len(whole.Neighbours) != 2 || whole.Pressure.Level != "calm" {
		t.Errorf("%+v", whole)
	}
	for name, s := range map[string]*Series{"node": &whole.Series, "pod": &whole.Pods[0].Series} {
		if !s.valid() || s.At[0] != -120_000 || s.At[len(s.At)-1] != 40_000 || len(s.At) > maxSeconds+maxFast+maxRest {
			t.Errorf("%s: %d moments from %d to %d", name, len(s.At), s.At[0], s.At[len(s.At)-1])
		}
		for i := 1; i < len(s.At); i++ {
			if s.At[i] <= s.At[i-1] {
				t.Errorf("%s: %d ms after %d ms", name, s.At[i], s.At[i-1])
			}
		}
	}
	if s := whole.Pods[0].Slopes; len(s) != 3 || s[0].BytesPerSecond < 0.9*mib || s[0].BytesPerSecond > 1.1*mib {
		t.Errorf("slopes %+v, want 1 MiB/s over three windows", s)
	}
	if v, ok := at(&whole.Pods[0].Series, "workingSet"); !ok || v != 244*1024 {
		t.Errorf("working set at the beginning: %d KiB, %v", v, ok)
	}
}

// A reading that is missing is null, in the file and in what is joined; never 0.
func TestMissingReadings(t *testing.T) {
	s := NodeSeries([]pressure.Sample{{At: boot, Capacity: pressure.Unknown, MemAvailable: pressure.Unknown, RootWorkingSet: 5 << 30, RootActiveFile: pressure.Unknown, PodsWorkingSet: pressure.Unknown,
		PodsActiveFile: pressure.Unknown, StallSome: pressure.Missing, StallFull: pressure.Missing}}, []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true, Bytes: mib}}, boot)
	data, err := json.Marshal(s)
	if err != nil || bytes.Count(data, []byte("[null]")) != 7 {
		t.Errorf("%s, %v", data, err)
	}
	var back Series
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(s, back) {
		t.Errorf("%+v, %v", back, err)
	}
	if _, ok := at(&back, "margin"); ok {
		t.Error("a margin of nothing")
	}
	joined := back.append(Series{At: []int64{5}, Columns: []Column{{"rootWorkingSet", KiB, []Value{7}}}})
	if !joined.valid() || joined.Column("margin")[1] != None || joined.Column("rootWorkingSet")[1] != 7 {
		t.Errorf("%+v", joined)
	}
}

func TestNearest(t *testing.T) {
	var all []Neighbour
	for i := range 40 {
		all = append(all, Neighbour{UID: fmt.Sprint(i), WorkingSet: uint64(i), Growth: float64(20 - i)})
	}
	var got []string
	for _, n := range Nearest(all, func(uid string) bool { return uid == "39" || uid == "0" }) {
		got = append(got, n.UID)
	}
	if want := "38 37 36 35 34 5 4 3 2 1"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func TestCut(t *testing.T) {
	if got := Cut(strings.Repeat("ü", 600)); len(got) > maxTexts+3 || got != strings.Repeat("ü", 256)+"…" {
		t.Errorf("%q", got)
	}
	if got := Cut("short"); got != "short" {
		t.Errorf("%q", got)
	}
}
