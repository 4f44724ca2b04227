package status

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode"
)

func ptr[T any](v T) *T { return &v }

// hostile is a status in which every text that comes from outside tries to disturb a terminal.
func hostile() *Status {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const (
		ansi  = "\x1b[31mred\x1b[0m"
		lines = "a\nlevel CALM\tfine"
		bidi  = "cart\u202egnp"
	)
	return &Status{
		Version: "1.0", Node: "node-1\r", Mode: "enforce", StartedAt: at.Add(-90 * time.Second), At: at, CgroupV: "v2",
		Pressure: Pressure{Level: "evict", LevelNow: "evict", Reason: "ETA 3.0 s " + ansi, Signal: "memory.available", MarginBytes: ptr(int64(300 << 20)), UsedPercent: ptr(95.25),
			SlopeBytes: 100 << 20, CacheSlope: 1 << 20, ETASeconds: ptr(3.0), LeadSeconds: 31, Cause: "pods", Stalls: []Stall{{"some", 0.2, 0.25}, {"some", 10, 0.125}, {"full", 10, 0}}, Risk: &Risk{PercentPerHour: 0.1, R2: 0.5, SpanSeconds: 3600}, Growth: []Growth{{"node", ptr(100.0 * (1 << 20))}, {"kernel", nil}},
			Thresholds: []Threshold{
				{Signal: "memory.available", Hard: true, LimitBytes: ptr(int64(100 << 20)), AvailableBytes: ptr(int64(400 << 20)), MarginBytes: ptr(int64(300 << 20)), Source: "/configz"},
				{Signal: "allocatableMemory.available", LimitBytes: ptr(int64(1 << 30)), Source: "file\x00with zero"},
			},
			Gates: []Gate{{"used", true, "used 95.3 %"}}},
		Sources: []Source{{"api-server", OK, "12 pods"}, {"cri", Degraded, lines}},
		Loop:    Loop{LastPass: at, Passes: 7},
		Reclaims: Reclaims{Count: 9, BackBytes: 9 << 30, Attempts: []Reclaim{
			{Pod: "shop/reader" + ansi, At: at, State: "reclaimed", WantBytes: 2 << 30, BackBytes: 1 << 30, Seconds: 0.0712, LastingBytes: ptr(int64(-5 << 20)), RefaultPages: ptr(int64(8000))},
			{Pod: "shop/other", At: at, State: "refused", Why: "reclaim /kubepods/other: refused: swap of the node 0: 1024" + ansi, WantBytes: 64 << 20},
			{Pod: "shop/reader", At: at, State: "reclaiming", WantBytes: 2 << 30},
			{Pod: "shop/reader", At: at, State: "reclaimed"}, {Pod: "shop/reader", At: at, State: "reclaimed"}, {Pod: "shop/older", At: at, State: "reclaimed"},
		}},
		Brakes: []Brake{
			{Pod: "shop/leak" + ansi, At: at, SetAt: &at, State: "braking", UsageBytes: ptr(uint64(1000 << 20)), HighBytes: ptr(uint64(1050 << 20))},
			{Pod: "shop/old", At: at, State: "released", Why: "paused: " + lines, UsageBytes: ptr(uint64(100 << 20)), HighBytes: ptr(uint64(132 << 20)), PreviousBytes: ptr(uint64(4 << 30))},
			{Pod: "shop/small", At: at, State: "not-needed", Why: "its limit of 64 MiB is as near"},
		},
		Evictions: Evictions{Forbidden: "shop/" + ansi + " is on its way out", Once: "towards 80 %: " + ansi, LastHour: 1, HourlyCap: 10, Outcomes: []Outcome{
			{DecisionID: "0301-1", Namespace: "shop", Pod: lines, State: "in-flight", AskedAt: at, Answer: "accepted", Code: 201, ExpectedBytes: 500 << 20, ShortenedAt: &at},
			{DecisionID: "0301-0", Namespace: "shop", Pod: "b", State: "would-evict", DryRun: true, AskedAt: at, Answer: "accepted", Code: 201, MeasuredBytes: ptr(uint64(5))},
		}, Replacements: []Replacement{
			{Namespace: "shop", Pod: "web-1", EvictedAt: at, State: "running", Replacement: "web-5", Node: "node-b", AfterSeconds: ptr(4.2)},
			{Namespace: "shop", Pod: lines, EvictedAt: at, State: "unscheduled", Waits: true, Replacement: ansi, Message: lines, Late: true},
		}},
		Pods: []Pod{
			{Namespace: "shop", Name: ansi, UID: "1", QoS: "Burstable", Fresh: true, WorkingSetBytes: ptr(uint64(3 << 30)), GrowthBytes: ptr(100.0 * (1 << 20)), RequestBytes: 256 << 20, Score: ptr(78.25), Rank: 1, Risk: &Risk{High: true, PercentPerHour: 2.125, R2: 0.97, SpanSeconds: 86000}},
			{Namespace: "shop", Name: bidi, UID: "2", QoS: "Guaranteed", LimitBytes: ptr(uint64(1023)), Protection: "no-reading", Reason: "no fresh reading of its memory"},
			{Namespace: lines, Name: "c", UID: "3", Fresh: true, WorkingSetBytes: ptr(uint64(0)), Rank: 2, Reason: "its memory would not end the shortage"},
		},
		Groups: []Group{{Path: "/system.slice/a\x1b]0;title\x07.service", UsageBytes: ptr(uint64(10 << 20))}},
		OOMKills: []OOMKill{{At: at, Namespace: "shop", Pod: ansi, Container: "c\b\b\b", Process: "java\nfake", PID: 42, AnonBytes: ptr(uint64(1 << 30)), LimitBytes: ptr(uint64(1 << 30)), LimitOf: "container",
			Source: "bpf", Victims: 20, Domain: "cgroup", DomainCgroup: "/kubepods/" + ansi, DomainKnownBy: "memory.events"}, {At: at, Cgroup: "/user.slice", Process: "sh", PID: 43, LimitOf: "none", Source: "kmsg", Victims: 1, Domain: "node", DomainKnownBy: "no-limit"},
			{At: at, Cgroup: "/kubepods/pod", LimitOf: "unknown", Source: "vmstat", Victims: 3, Domain: "unknown"}},
		Incidents: []Event{{ID: "inc-7", At: at, Subject: "shop/" + ansi, Text: "the kernel killed java (pid 42)"}, {ID: "inc-6", At: at, Subject: "node", Text: lines}},
		Decisions: []Decision{{ID: "0301-1", At: at, Level: "evict", State: "victim", Victim: "shop/" + ansi, Reason: lines, Score: ptr(78.25)},
			{ID: "0301-0", At: at, Level: "critical", State: "held", Reason: "paused"}},
	}
}

func TestTableOfHostileNames(t *testing.T) {
	s := hostile()
	var out bytes.Buffer
	if err := WriteTable(&out, s, 0); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", out.String())
	for i, line := range strings.Split(out.String(), "\n") {
		for _, r := range line {
			if !unicode.IsPrint(r) {
				t.Errorf("line %d holds %U: %q", i+1, r, line)
			}
		}
	}
	for _, fake := range []string{"\nlevel CALM", "\x1b"} {
		if strings.Contains(out.String(), fake) {
			t.Errorf("the table holds %q", fake)
		}
	}
}

// TestTableShowsTheVerdictFirst: PAUSED and the level before anything else, and at most so many pods, last.
func TestTableShowsTheVerdictFirst(t *testing.T) {
	s := hostile()
	s.Evictions.Paused = true
	var out bytes.Buffer
	if err := WriteTable(&out, s, 1); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	if lines := strings.Split(got, "\n"); !strings.HasPrefix(lines[0], "PAUSED: ") || !strings.HasPrefix(lines[1], "level EVICT   \"ETA 3.0 s") {
		t.Errorf("the table begins with\n%s\n%s", lines[0], lines[1])
	}
	if strings.Count(got, "PAUSED") != 1 || strings.Index(got, "\nRANK ") < strings.Index(got, "\nDECISION ") || strings.Index(got, "\nRANK ") < strings.Index(got, "no eviction may start now") {
		t.Errorf("the pods are not last:\n%s", got)
	}
	if !strings.HasSuffix(got, "\n2 more (--pods 0 shows all)\n") {
		t.Errorf("the table does not end with the number of the other pods:\n%s", got)
	}
}

func TestTableOfNothing(t *testing.T) {
	var out bytes.Buffer
	if err := WriteTable(&out, &Status{}, 0); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "used unknown   margin unknown to -") || !strings.Contains(got, "ETA none") || strings.Contains(got, "POD") || strings.Contains(got, "forbid") {
		t.Errorf("absent figures must not look like numbers:\n%s", got)
	}
}

func init() { time.Local = time.UTC } // the golden files are of that zone

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestTableReportsWriteErrors(t *testing.T) {
	if err := WriteTable(failing{}, hostile(), 0); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("error %v", err)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{"": "", "plain-name_1": "plain-name_1", "größe 日本": "größe 日本", "a\nb": `"a\nb"`, "\x1b[0m": `"\x1b[0m"`, "a\x7f": `"a\x7f"`,
		"x\u202ey": `"x\u202ey"`, "x\u200by": `"x\u200by"`, "nbsp\u00a0": `"nbsp\u00a0"`, "\u0085": `"\u0085"`} {
		if got := Clean(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[float64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", -2048: "-2 KiB", 1 << 20: "1.0 MiB", 1.5 * (1 << 30): "1.50 GiB", -(1 << 20): "-1.0 MiB"} {
		if got := size(in); got != want {
			t.Errorf("%v is %q, want %q", in, got, want)
		}
	}
}

// TestTableOfAPodWithoutName: nobody told its name, as where the agent stands alone.
func TestTableOfAPodWithoutName(t *testing.T) {
	const uid = "0b3c0c5e-8c4e-4a25-8000-000000000001"
	s := &Status{Pods: []Pod{{UID: uid}, {Namespace: "shop", Name: "web-1", UID: "2"}}}
	var out strings.Builder
	if err := WriteTable(&out, s, 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"-     " + uid + " ", "-     shop/web-1 "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}
