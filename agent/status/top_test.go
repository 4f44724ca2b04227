package status

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func topStatus() *Status {
	at := time.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC)
	s := &Status{
		Node: "node-a", Mode: "enforce", At: at,
		Pressure: Pressure{Level: "evict", Signal: "memory.available", MarginBytes: ptr(int64(700 << 20)), UsedPercent: ptr(91.2), SlopeBytes: 40 << 20, ETASeconds: ptr(17.5), LeadSeconds: 31, Cause: "pods",
			Stalls:     []Stall{{Kind: "some", WindowSeconds: 10, Ratio: 0.02}},
			Growth:     []Growth{{Part: "pods", BytesPerSecond: ptr(float64(40 << 20))}, {Part: "kernel"}},
			Thresholds: []Threshold{{Signal: "memory.available", Hard: true, MarginBytes: ptr(int64(700 << 20))}, {Signal: "memory.available", MarginBytes: ptr(int64(1))}, {Signal: "node", Hard: true, MarginBytes: ptr(int64(900 << 20))}}},
		Loop:      Loop{IntervalSeconds: 0.02},
		Decisions: []Decision{{At: at, State: "held", Victim: "shop/recommendation-7b9f-x", Reason: "cooldown after the last eviction (at most 12 s left)"}},
		Evictions: Evictions{LastHour: 1, HourlyCap: 10, Forbidden: "cooldown after the last eviction (at most 12 s left)"},
		Sources:   []Source{{Name: "cri", State: Degraded, Detail: "hangs"}, {Name: "ledger", State: OK}, {Name: "psi", State: Degraded}},
	}
	for i := range 30 {
		s.Pods = append(s.Pods, Pod{Namespace: "shop", Name: fmt.Sprintf("web-%02d", i), UID: fmt.Sprint(i), QoS: "Burstable", Rank: i + 2, Score: ptr(40 - float64(i)), WorkingSetBytes: ptr(uint64(i+1) << 20), GrowthBytes: ptr(0.0), RequestBytes: 1 << 20})
	}
	return s
}

func leaking() *Status {
	s := topStatus()
	s.Pods = append(s.Pods,
		Pod{Namespace: "shop", Name: "recommendation-7b9fd5c8b6-with-a-name-that-goes-on-and-on-x2x4q", UID: "leak", QoS: "BestEffort", Rank: 1, Score: ptr(88.4), WorkingSetBytes: ptr(uint64(3 << 30)), GrowthBytes: ptr(float64(40 << 20))},
		Pod{Namespace: "kube-system", Name: "evil\x1b[2J", UID: "evil", Protection: "namespace", Reason: "namespace kube-system is protected by config", WorkingSetBytes: ptr(uint64(50 << 20)), LimitBytes: ptr(uint64(100 << 20))})
	return s
}

// TestTop compares whole pictures with testdata/top-*.txt.
func TestTop(t *testing.T) {
	for _, tc := range []struct {
		name          string
		view          TopView
		width, height int
	}{
		{"80", TopView{Keys: "q: quit"}, 80, 24},
		{"200", TopView{Keys: "q: quit"}, 200, 40},
		{"growth", TopView{Order: ByGrowth, Selected: "leak"}, 100, 16},
		{"chosen-below", TopView{Order: ByName, Selected: "29"}, 80, 18},
		{"text", TopView{Text: "one\ntwo\n", Fault: "connection refused", Keys: "q: quit"}, 60, 16},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Top(leaking(), &tc.view, tc.width, tc.height)
			lines := strings.Split(got, "\n")
			if len(lines) > tc.height {
				t.Errorf("%d lines on a screen of %d", len(lines), tc.height)
			}
			for _, l := range lines {
				if n := utf8.RuneCountInString(l); n > tc.width {
					t.Errorf("%d columns on a screen of %d: %s", n, tc.width, l)
				}
			}
			if strings.Contains(got, "\x1b") {
				t.Error("an escape sequence without colour")
			}
			golden(t, "top-"+tc.name+".txt", got+"\n")
		})
	}
}

// TestTopOfAnything: no status and no screen is too poor, and colours neither lengthen a line nor stay on.
func TestTopOfAnything(t *testing.T) {
	for _, s := range []*Status{{}, topStatus(), leaking()} {
		for _, width := range []int{0, 1, 40, 79, 139, 140, 500} {
			for _, height := range []int{0, 12, 60} {
				for _, order := range append([]string{"", "other"}, TopOrders...) {
					got := Top(s, &TopView{Order: order, Selected: "gone", Colour: true, Keys: strings.Repeat("k", 100)}, width, height)
					for line := range strings.SplitSeq(got, "\n") {
						plain := strings.NewReplacer("\x1b[1;31m", "", "\x1b[1;33m", "", "\x1b[7m", "", "\x1b[0m", "").Replace(line)
						if n := utf8.RuneCountInString(plain); n > max(width, leastWidth) {
							t.Fatalf("%d columns of %d: %q", n, width, line)
						}
						if strings.Contains(line, "\x1b[") && !strings.Contains(line[strings.LastIndex(line, "\x1b["):], "[0m") {
							t.Fatalf("the colour stays on after %q", line)
						}
					}
					if n := strings.Count(got, "\n") + 1; n > max(height, leastHeight) {
						t.Fatalf("%d lines of %d", n, height)
					}
				}
			}
		}
	}
}
