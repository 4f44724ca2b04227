package scenario

import (
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
)

// TestTable: what a run did to whom is told apart by who did it and who had to go.
func TestTable(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	answered := at.Add(20 * time.Millisecond)
	cut, later := at.Add(9500*time.Millisecond), at.Add(time.Minute+1200*time.Millisecond)
	c := Case{Note: "some load", Rate: 100 << 20, Workloads: append([]Workload{{Name: "leak", Part: Culprit}, {Name: "held", Part: Culprit, Budget: true}}, Neighbours()...)}
	asked := func(uid string, dry bool) status.Outcome {
		return status.Outcome{UID: uid, Pod: "pod-" + uid, DryRun: dry, AskedAt: at, AnsweredAt: &answered}
	}
	apps := map[string]string{"1": "leak", "2": "held", "3": "cart", "4": "search", "5": "search"}
	gone := Fate{UID: "1", App: "leak", API: true, At: 4 * time.Second, Gone: 5500 * time.Millisecond}
	for _, tc := range []struct {
		name   string
		result Result
		want   []string // from "innocents hit" on, without the number of OOM kills
	}{
		{"the culprit alone", Result{Fates: []Fate{gone}, Status: &status.Status{Evictions: status.Evictions{Outcomes: []status.Outcome{asked("1", false)}}}, CulpritAsked: gone.At, CulpritLeft: gone.Gone, Call: 20 * time.Millisecond},
			[]string{"none", "none", "none", "4.0 + 0.02 + 1.5 = 5.5 s", "20.0 s", "-"}},
		{"two with other ends", Result{Status: &status.Status{Evictions: status.Evictions{Outcomes: []status.Outcome{
			{UID: "1", AskedAt: at.Add(time.Minute), EndedAt: &later}, {UID: "2", AskedAt: at, ShortenedAt: &cut, EndedAt: &later}, {UID: "3", DryRun: true, AskedAt: at, EndedAt: &later}, {UID: "3", AskedAt: at},
		}}}}, []string{"none", "none", "cart", "-", "20.0 s", "9.5 s, cut; 1.2 s"}},
		{"an innocent too, through the API", Result{Fates: []Fate{gone, {UID: "3", App: "cart", API: true}}, Status: &status.Status{Evictions: status.Evictions{Outcomes: []status.Outcome{asked("3", false), asked("1", false)}}}},
			[]string{"cart", "none", "cart", "-", "20.0 s", "-"}},
		{"asked for in vain, and as a dry run", Result{Status: &status.Status{Evictions: status.Evictions{Outcomes: []status.Outcome{asked("4", false), asked("5", true), asked("4", false), asked("1", true)}}}},
			[]string{"none", "none", "2 × search", "-", "20.0 s", "-"}},
		{"a pod that nobody saw", Result{Status: &status.Status{Evictions: status.Evictions{Outcomes: []status.Outcome{asked("9", false)}}}},
			[]string{"none", "none", "pod-9", "-", "20.0 s", "-"}},
		{"the kubelet passes over a budget", Result{Fates: []Fate{{UID: "2", App: "held", Kubelet: true, At: 9 * time.Second}, {UID: "3", App: "cart", Kubelet: true}}, CulpritAsked: 9 * time.Second},
			[]string{"cart", "held", "none", "9.0 s + ...", "20.0 s", "-"}},
		{"an OOM kill", Result{Fates: []Fate{{UID: "2", App: "held", OOMKilled: true}, {UID: "3", App: "cart", OOMKilled: true}}},
			[]string{"cart", "none", "none", "-", "20.0 s", "-"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &tc.result
			r.Case, r.Start, r.apps = c, 2000<<20, apps
			var out strings.Builder
			if err := WriteTable(&out, []*Result{r}); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			var got, head []string
			for _, cell := range strings.Split(strings.Trim(lines[2], "|"), "|") {
				got = append(got, strings.TrimSpace(cell))
			}
			for _, cell := range strings.Split(strings.Trim(lines[0], "|"), "|") {
				head = append(head, strings.TrimSpace(cell))
			}
			i := slices.Index(head, "innocents hit")
			if len(lines) != 3 || len(got) != len(columns) || len(head) != len(columns) || i < 0 {
				t.Fatalf("%d lines, %d names, %d cells:\n%s", len(lines), len(head), len(got), out.String())
			}
			if got = slices.DeleteFunc(got[i:], func(s string) bool { return s == "0" }); !slices.Equal(got, tc.want) {
				t.Errorf("cells %q, want %q", got, tc.want)
			}
		})
	}
}

// TestCall: the answer that counts is that about the pod.
func TestCall(t *testing.T) {
	at := time.Unix(1e9, 0)
	later := at.Add(time.Second)
	r := Result{Status: &status.Status{Evictions: status.Evictions{Outcomes: []status.Outcome{{UID: "a", AskedAt: at}, {UID: "b", AskedAt: at, AnsweredAt: &later}}}}}
	for uid, want := range map[string]time.Duration{"a": 0, "b": time.Second, "c": 0} {
		if got := r.call(uid); got != want {
			t.Errorf("%s: %s, want %s", uid, got, want)
		}
	}
}
