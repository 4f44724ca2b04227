package publish

import (
	"slices"
	"strings"
	"time"

	"spillway/agent/brake"
	"spillway/agent/evict"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/reclaim"
	"spillway/agent/status"
	"spillway/agent/timing"
)

// Decision is the record of one look at the pods.
func Decision(now time.Time, v *pressure.Verdict, made *policy.Decision, dryRun bool) *status.Decision {
	d := &status.Decision{
		At: now, Level: v.Now.String(), Signal: string(v.Nearest.Signal), MarginBytes: int64(v.Nearest.Margin), ETASeconds: eta(v.ETA),
		SlopeBytes: v.EvictSlope, LeadSeconds: v.LeadTime.Seconds(), Cause: string(v.Cause), Why: v.Reason,
		State: made.State, Reason: made.Reason, DryRun: dryRun,
		KubeletChoice: made.Without.Text(),
	}
	for i := range made.Pods {
		d.Ranking = append(d.Ranking, pod(&made.Pods[i], nil))
	}
	return d
}

// Outcomes are evictions, newest first; all has the newest last.
func Outcomes(all []*evict.Outcome) []status.Outcome {
	var out []status.Outcome
	for _, o := range slices.Backward(all) {
		v, latency := &o.Victim, o.Latency()
		item := status.Outcome{DecisionID: v.DecisionID, Namespace: v.Pod.Namespace, Pod: v.Pod.Name, UID: v.Pod.UID, State: string(o.State), DryRun: o.DryRun,
			SampledAt: moment(v.SampledAt), AskedAt: o.AskedAt, AnsweredAt: moment(o.AnswerAt), EndedAt: moment(o.EndedAt), ShortenedAt: moment(o.ShortenedAt), Code: o.Answer.Code, Message: o.Answer.Message, ExpectedBytes: v.Release,
			MeasuredBytes: status.Figure(o.Measured, o.MeasuredKnown), LatencySeconds: status.Figure(latency.Seconds(), latency > 0)}
		if !o.AnswerAt.IsZero() {
			item.Answer = o.Answer.Verb.String()
		}
		out = append(out, item)
	}
	return out
}

func moment(t time.Time) *time.Time { return status.Figure(t, !t.IsZero()) }

// Shares are the bounds on evictions by the number of the node's pods.
func Shares(all []evict.Share) []status.Share {
	var out []status.Share
	for _, s := range all {
		class := "all"
		if s.Relief {
			class = "relief"
		}
		out = append(out, status.Share{Class: class, WindowHours: s.Window.Hours(), Count: s.Count, Most: s.Most, Percent: s.Percent, Pods: s.Pods})
	}
	return out
}

// Timing is what evictions are taken to last.
func Timing(t policy.Timing, n timing.Counts) *status.Timing {
	f := t.Filled()
	return &status.Timing{CallSeconds: f.Call.Seconds(), Calls: n.Calls, CallMeasured: t.Call > 0, CutSeconds: f.Cut.Seconds(), Cuts: n.Cuts, CutMeasured: t.Cut > 0,
		RuntimeStops: t.Stops, BackBytes: f.Back, Releases: n.Backs, BackMeasured: t.Back > 0}
}

// keepReplacements is how many that have ended are shown.
const keepReplacements = 32

// Replacements lists those that are waited for, and the newest of the others; all has the newest first.
func Replacements(all []evict.Followed) []status.Replacement {
	var out []status.Replacement
	ended := 0
	for i := range all {
		if !all[i].Waits {
			if ended++; ended > keepReplacements {
				continue
			}
		}
		out = append(out, Replacement(&all[i]))
	}
	return out
}

// Replacement is what came in the place of one evicted pod.
func Replacement(f *evict.Followed) status.Replacement {
	return status.Replacement{
		DecisionID: f.DecisionID, Namespace: f.Namespace, Pod: f.Name, UID: f.UID, EvictedAt: f.At, State: string(f.State), Waits: f.Waits, Late: f.Late,
		Replacement: f.Pod, Node: f.Node, SameNode: f.Here, Message: f.Message, SeenAt: moment(f.SeenAt),
		AfterSeconds: status.Figure(f.Took.Seconds(), f.State == policy.ReplacementRunning),
	}
}

// Brakes lists brakes, newest first; all has the newest last.
func Brakes(all []*brake.Attempt) []status.Brake {
	var out []status.Brake
	for _, a := range slices.Backward(all) {
		set := !a.SetAt.IsZero()
		b := status.Brake{Pod: a.Pod, UID: a.UID, At: a.At, SetAt: moment(a.SetAt), EndedAt: moment(a.EndedAt), State: string(a.State), Why: a.Why,
			UsageBytes: status.Figure(a.Usage, set), HighBytes: status.Figure(a.High, set), PreviousBytes: status.Figure(a.Previous.Bytes())}
		if a.Err != nil && !strings.Contains(b.Why, a.Err.Error()) {
			b.Why = strings.TrimPrefix(b.Why+"; "+a.Err.Error(), "; ")
		}
		out = append(out, b)
	}
	return out
}

// Reclaims lists reclaims of page cache, newest first; all has the newest last.
func Reclaims(all []*reclaim.Attempt) []status.Reclaim {
	var out []status.Reclaim
	for _, a := range slices.Backward(all) {
		measured := !a.MeasuredAt.IsZero()
		r := status.Reclaim{Pod: a.Pod, UID: a.UID, At: a.At, EndedAt: moment(a.EndedAt), State: a.State(), Why: a.Answer.Refused, DryRun: a.DryRun, WantBytes: a.Bytes,
			BackBytes: a.Answer.Back, Seconds: a.Answer.Took.Seconds(), LastingBytes: status.Figure(a.Lasting, measured),
			RefaultPages: status.Figure(a.Refaults, measured && a.Refaults >= 0), MajorFaults: status.Figure(a.MajorFaults, measured && a.MajorFaults >= 0)}
		if a.Answer.Err != nil {
			r.Why = a.Answer.Err.Error()
		}
		out = append(out, r)
	}
	return out
}
