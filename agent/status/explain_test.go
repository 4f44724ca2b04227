package status

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func someExplanation() Explanation {
	return Explanation{
		At: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Pod: "shop/cart\x1b[31m", UID: "1", Why: "it is protected: label: business-critical=true\nEVICTED",
		Level: "evict", LevelReason: "ETA 3.0 s", Gates: []Gate{{"eta", true, "ETA 3.0 s is under the lead time"}}, Held: "the cooldown runs",
		Fate: "protected", FateReason: "label", Protections: []Protection{{"label", "business-critical=true"}, {"volume-claim", "it has a claimed volume"}},
		Of: 6, Score: ptr(57.5), Terms: []Term{{"growth-share", 0.5, 100}, {"qos", 0.125, 60}}, Fresh: true,
		ReleaseBytes: ptr(uint64(1 << 30)), SurvivesBytes: ptr(uint64(0)), GrowthBytes: ptr(100.0 * (1 << 20)), GrowthPercent: ptr(100.0), Covers: true, Set: []string{"shop/batch"}, LeadSeconds: 4.5, LeadLearned: true,
	}
}

func TestWriteExplanation(t *testing.T) {
	var out bytes.Buffer
	if err := WriteExplanation(&out, someExplanation()); err != nil {
		t.Fatal(err)
	}
	golden(t, "explain.txt", out.String())
	if strings.ContainsAny(out.String(), "\x1b\r") {
		t.Error("a pod's name reaches the terminal")
	}
}

func TestExplanationTravelsWhole(t *testing.T) {
	for name, tc := range map[string]struct {
		explain func(context.Context, string) (Explanation, error)
		err     string
	}{
		"a pod": {func(context.Context, string) (Explanation, error) { return someExplanation(), nil }, ""},
		"no pod": {func(_ context.Context, pod string) (Explanation, error) {
			return Explanation{}, errors.New("no pod " + pod)
		}, "no pod a/b&c=d"},
		"standalone": {nil, "evicts no pods"},
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			_, stop := serveViews(t, path, Views{Explain: tc.explain})
			defer stop()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			got, err := GetExplanation(ctx, path, "a/b&c=d")
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %q in it", err, tc.err)
				}
			} else if d := cmp.Diff(someExplanation(), got); err != nil || d != "" {
				t.Errorf("%v, explanation (-sent +received):\n%s", err, d)
			}
		})
	}
}
