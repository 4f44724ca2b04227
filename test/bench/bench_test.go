package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []time.Duration
		want time.Duration
	}{
		{"none", nil, 0}, {"one", []time.Duration{7}, 7}, {"odd", []time.Duration{9, 1, 5}, 5},
		{"even", []time.Duration{4, 100, 2, 1}, 3}, {"an outlier", []time.Duration{3, 3, 3, 1e9}, 3},
	} {
		if got := median(c.in); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestTurns(t *testing.T) {
	var kept []byte
	calls := map[string]int{}
	one := &contender{name: "one", per: 1, do: func() error { calls["one"]++; return nil }}
	two := &contender{name: "two", per: 2, do: func() error { calls["two"]++; kept = make([]byte, 100); return nil }}
	if err := takeTurns(t.Context(), 7, []*contender{one, two}); err != nil {
		t.Fatal(err)
	}
	if len(one.times) != 7 || len(two.times) != 7 || calls["one"] < 7+3+1+20 || calls["two"] < 7+3+1+20 {
		t.Errorf("%d and %d turns, calls %v", len(one.times), len(two.times), calls)
	}
	if one.allocs != 0 || two.allocs != 1 || len(kept) != 100 {
		t.Errorf("allocations %v and %v, want 0 and 1", one.allocs, two.allocs)
	}
	two.times = []time.Duration{100}
	if two.ns() != 50 {
		t.Errorf("%v ns per unit, want 50", two.ns())
	}

	broken := errors.New("broken")
	err := takeTurns(t.Context(), 1, []*contender{{name: "three", per: 1, do: func() error { return broken }}})
	if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "three: ") {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := takeTurns(ctx, 1, []*contender{one}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestVerdict(t *testing.T) {
	c := func(name string, ns time.Duration, allocs float64) *contender {
		return &contender{name: name, per: 1, times: []time.Duration{ns}, allocs: allocs}
	}
	for _, x := range []struct {
		name string
		row  row
		want string
	}{
		{"met", row{ours: c("", 150, 0), bare: c("", 100, 0), other: [2]*contender{c("a", 3000, 9), c("b", 3000, 9)}, held: true}, "met"},
		{"too slow", row{ours: c("", 151, 0), bare: c("", 100, 0), other: [2]*contender{c("a", 4000, 9), c("b", 3019, 9)}, held: true},
			"missed: ≤ 1.5 × preads; ≥ 20 × cheaper than b"},
		{"allocates", row{ours: c("", 1, 2)}, "missed: 0 allocations"},
	} {
		if got := verdict(x.row); got != x.want {
			t.Errorf("%s: %q, want %q", x.name, got, x.want)
		}
	}
}

func TestPhases(t *testing.T) {
	for _, c := range []struct {
		in string
		ok bool
	}{{"calm=5m", true}, {"pressure=1s", true}, {"calm", false}, {"calm=", false}, {"pressure=0.5s", false}, {"pressure=-1m", false}, {"storm=1m", false}, {"", false}} {
		var p phases
		if err := p.Set(c.in); (err == nil) != c.ok {
			t.Errorf("%q: %v", c.in, err)
		}
	}
	var p phases
	if err := errors.Join(p.Set("calm=90s"), p.Set("pressure=2m")); err != nil || p.String() != "calm=1m30s pressure=2m0s " {
		t.Errorf("%q, %v", p.String(), err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"-turns", "0"}, {"-cost", "-1s"}, {"-frobnicate"}, {"word"}, {"-phase", "x=1s"}} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, new(bytes.Buffer), &stderr); code != 2 || stderr.Len() == 0 {
			t.Errorf("%q: exit code %d, %q", args, code, stderr.String())
		}
	}
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"-cost", "1m", "-agent", "/does/not/exist"}, new(bytes.Buffer), &stderr); code != 1 || !strings.Contains(stderr.String(), "agent's binary") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
}

func TestParseProcess(t *testing.T) {
	const stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 900 0 3 0 250 50 0 0 20 0 9 0 100 1 2 3"
	const status = "Name:\ta\nVmRSS:\t    2048 kB\nRssAnon:\t  1024 kB\nThreads:\t9\n"
	p, err := parseProcess(stat, status)
	if want := (process{cpu: 3 * time.Second, rss: 2 << 20, anon: 1 << 20, threads: 9}); err != nil || p != want {
		t.Errorf("%+v, %v, want %+v", p, err, want)
	}
	for _, c := range []struct{ name, stat, status string }{
		{"empty stat", "", status}, {"short stat", "42 (a) S 1 2 3", status}, {"no number", strings.Replace(stat, "250", "x", 1), status},
		{"no RSS", stat, "RssAnon: 1 kB\n"}, {"another unit", stat, strings.Replace(status, "2048 kB", "2048 MB", 1)},
	} {
		if _, err := parseProcess(c.stat, c.status); err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
}
