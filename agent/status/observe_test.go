package status

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestObserveText(t *testing.T) {
	for want, o := range map[string]Observe{
		"no would-be eviction in 7 days":               {Days: 7},
		"no would-be eviction in 7 days; 2 still open": {Days: 7, Open: 2},
		"1 would-be eviction: 1 ended by itself":       {WouldEvict: 1, Ended: 1},
		"2 would-be evictions: 2 ended by themselves":  {WouldEvict: 2, Ended: 2},
		"1 would-be eviction in 7 days: 1 not judged":  {Days: 7, WouldEvict: 1, NotJudged: 1},
		"13 would-be evictions in 7 days: after 9 the threshold was crossed, after 1 the kubelet or the kernel acted, 2 ended by themselves, 1 not judged; 1 still open; the kubelet or the kernel took the same pod 3 times, another pod once": {
			Days: 7, WouldEvict: 13, Crossed: 9, Acted: 1, Ended: 2, NotJudged: 1, Open: 1, SamePod: 3, OtherPod: 1},
	} {
		if got := o.Text(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestWouldEvictWords(t *testing.T) {
	for want, w := range map[string]WouldEvict{
		"still open":                                                       {},
		"still open; lowest margin 5.0 MiB":                                {LowestMargin: ptr(int64(5 << 20))},
		"not judged: the pod was deleted":                                  {Verdict: VerdictNotJudged, Why: "the pod was deleted", LowestMargin: ptr(int64(5))},
		"the growth ended; lowest margin 1.00 GiB":                         {Verdict: VerdictEnded, Why: "the growth ended", LowestMargin: ptr(int64(1 << 30))},
		"crossed; the kubelet evicted the same pod":                        {Verdict: VerdictCrossed, Why: "crossed", Taken: []Taken{{By: "kubelet", Pod: "shop/a", Same: true}}},
		"crossed; the kernel killed in shop/b, the kubelet evicted shop/c": {Verdict: VerdictCrossed, Why: "crossed", Taken: []Taken{{By: "kernel", Pod: "shop/b"}, {By: "kubelet", Pod: "shop/c"}}},
	} {
		if got := w.Words(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// The table shows the score in one line, and the newest would-be evictions; names cannot disturb the terminal.
func TestTableShowsTheScore(t *testing.T) {
	o := Observe{Days: 7, WouldEvict: 8, Crossed: 8}
	for i := range 8 {
		o.Newest = append(o.Newest, WouldEvict{At: time.Date(2026, 3, 1, 12, 0, 8-i, 0, time.UTC), DecisionID: "0301-1", Namespace: "shop", Pod: "leak\x1b[31m", Repeats: 2, Verdict: VerdictCrossed, Why: "memory.available crossed its threshold 8 s later"})
	}
	var out bytes.Buffer
	if err := WriteTable(&out, &Status{Mode: "observe", Observe: &o}, 0); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	if !strings.Contains(text, "\nobserve: 8 would-be evictions in 7 days: after 8 the threshold was crossed\n") || !strings.Contains(text, "WOULD EVICT  AT ") ||
		strings.Count(text, "crossed its threshold") != mostWould || strings.Contains(text, "\x1b") || !strings.Contains(text, "  3      crossed  ") {
		t.Error(text)
	}
	out.Reset()
	if err := WriteTable(&out, &Status{Mode: "enforce"}, 0); err != nil || strings.Contains(out.String(), "would") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
