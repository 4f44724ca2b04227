package status

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Observe says what became of the evictions that observe mode did not ask for. Package score judges them.
type Observe struct {
	Days       int `json:"days"`       // that the counts are of
	WouldEvict int `json:"wouldEvict"` // judged or not, without those that wait
	Crossed    int `json:"crossed"`
	Acted      int `json:"acted"`
	Ended      int `json:"ended"`
	NotJudged  int `json:"notJudged"`
	Open       int `json:"open"` // those that wait to be judged

	// Of those that were crossed or acted on: whether the kubelet or the kernel took the pod that Spillway would have evicted, or
	// another that it would not have.
	SamePod  int `json:"samePod"`
	OtherPod int `json:"otherPod"`

	Newest []WouldEvict `json:"newest"` // newest first, those that wait too
}

// Verdicts on a would-be eviction. While it waits it has none.
const (
	VerdictCrossed   = "crossed"    // the threshold was crossed
	VerdictActed     = "acted"      // the kubelet evicted a pod for memory, or the kernel killed as node or kubepods had run out of it
	VerdictEnded     = "ended"      // the growth ended by itself: the eviction was not needed
	VerdictNotJudged = "not-judged" // Why says what is missing
)

// Verdicts are all that there are.
var Verdicts = []string{VerdictCrossed, VerdictActed, VerdictEnded, VerdictNotJudged}

// WouldEvict is one eviction that observe mode did not ask for.
type WouldEvict struct {
	At           time.Time  `json:"at"`
	DecisionID   string     `json:"decisionId,omitempty"` // of the first decision that named the pod
	Namespace    string     `json:"namespace"`
	Pod          string     `json:"pod"`
	UID          string     `json:"uid"`
	Repeats      int        `json:"repeats"`           // further times that it was named before it was judged or, after that, calm
	Verdict      string     `json:"verdict,omitempty"` // empty: it waits
	JudgedAt     *time.Time `json:"judgedAt"`
	Why          string     `json:"why,omitempty"`     // of the verdict, in words
	LowestMargin *int64     `json:"lowestMarginBytes"` // to a hard threshold, from the decision to the verdict; null: not read
	Taken        []Taken    `json:"taken,omitempty"`   // by the kubelet or the kernel, the first four
}

// Taken is a pod that the kubelet evicted or in which the kernel killed.
type Taken struct {
	By   string `json:"by"`  // kubelet, kernel
	Pod  string `json:"pod"` // namespace/name, or a cgroup
	UID  string `json:"uid,omitempty"`
	Same bool   `json:"same"` // the pod that Spillway would have evicted
}

// Text says it in one sentence.
func (o *Observe) Text() string {
	var b strings.Builder
	within := ""
	if o.Days > 0 {
		within = fmt.Sprintf(" in %d days", o.Days)
	}
	switch o.WouldEvict {
	case 0:
		fmt.Fprintf(&b, "no would-be eviction%s", within)
	case 1:
		fmt.Fprintf(&b, "1 would-be eviction%s", within)
	default:
		fmt.Fprintf(&b, "%d would-be evictions%s", o.WouldEvict, within)
	}
	var parts []string
	part := func(n int, format string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf(format, n))
		}
	}
	themselves := "%d ended by themselves"
	if o.Ended == 1 {
		themselves = "%d ended by itself"
	}
	part(o.Crossed, "after %d the threshold was crossed")
	part(o.Acted, "after %d the kubelet or the kernel acted")
	part(o.Ended, themselves)
	part(o.NotJudged, "%d not judged")
	if len(parts) > 0 {
		fmt.Fprintf(&b, ": %s", strings.Join(parts, ", "))
	}
	if o.Open > 0 {
		fmt.Fprintf(&b, "; %d still open", o.Open)
	}
	var taken []string
	if o.SamePod > 0 {
		taken = append(taken, "the same pod "+times(o.SamePod))
	}
	if o.OtherPod > 0 {
		taken = append(taken, "another pod "+times(o.OtherPod))
	}
	if len(taken) > 0 {
		fmt.Fprintf(&b, "; the kubelet or the kernel took %s", strings.Join(taken, ", "))
	}
	return b.String()
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// Words says what became of it.
func (w *WouldEvict) Words() string {
	out := "still open"
	switch w.Verdict {
	case "":
	case VerdictNotJudged:
		out = "not judged: " + w.Why
	default:
		out = w.Why
	}
	for i, t := range w.Taken {
		pod := t.Pod
		if t.Same {
			pod = "the same pod"
		}
		took := "evicted"
		if t.By == "kernel" {
			took = "killed in"
		}
		if i == 0 {
			out += fmt.Sprintf("; the %s %s %s", t.By, took, pod)
		} else {
			out += fmt.Sprintf(", the %s %s %s", t.By, took, pod)
		}
	}
	if w.LowestMargin != nil && w.Verdict != VerdictNotJudged {
		out += "; lowest margin " + size(float64(*w.LowestMargin))
	}
	return out
}

// mostWould is how many of the newest would-be evictions are shown.
const mostWould = 5

// writeWould prints the newest would-be evictions.
func writeWould(w io.Writer, o *Observe) {
	if o == nil || len(o.Newest) == 0 {
		return
	}
	fmt.Fprintln(w, "\nWOULD EVICT\tAT\tPOD\tNAMED\tVERDICT\tWHAT HAPPENED")
	for i := range o.Newest[:min(mostWould, len(o.Newest))] {
		e := &o.Newest[i]
		fmt.Fprintf(w, "%s\t%s\t%s/%s\t%d\t%s\t%s\n", orNone(Clean(e.DecisionID)), clock(e.At), Clean(e.Namespace), Clean(e.Pod), 1+e.Repeats, orNone(e.Verdict), Clean(e.Words()))
	}
}
