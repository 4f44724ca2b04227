package evict

import (
	"cmp"
	"time"

	"spillway/agent/policy"
)

// When and how a grace period is cut short.
const (
	// ShortGrace is asked for in the second call. 0 would delete the object at once and leave its containers.
	ShortGrace = time.Second

	shortenBelow = 4 * time.Second // time left until the threshold, where the victim's hard lead time is not known
	shortenAfter = time.Second     // what a victim that obeys SIGTERM gets in any case
	shortenWorth = 3 * time.Second // of its grace must be left: the second wait takes 2 s
	shortenExit  = 2 * time.Second
	shortenRetry = 2 * time.Second
	shortenTries = 3
)

// Shortens reports whether this is the answer to a call of Shorten.
func (r Result) Shortens() bool { return r.shorten }

// Shorten repeats the Eviction call of a victim on its way out with a grace period of ShortGrace, when the threshold is
// less than its hard lead time away (left) and the victim would use its grace period for longer than that: the kubelet would soon give
// it and others less. It is the same eviction: neither cap nor round count it again. The caller has made sure that nothing
// but the brakes of Forbid holds evictions back. It returns the outcome that it asked for, nil when there was no cause.
func (m *Manager) Shorten(now time.Time, left time.Duration) *Outcome {
	if m.opts.KeepGrace || m.opts.DryRun || m.shortens != nil || now.Before(m.waitUntil) {
		return nil
	}
	var longest *Outcome
	for _, o := range m.outcomes {
		if !o.Open() {
			continue
		}
		if o.State == Asking {
			return nil // one call at a time
		}
		grace := o.Deadline.Add(-exitSlack).Sub(now)
		if left >= cmp.Or(o.Victim.Hard, shortenBelow) || o.State != InFlight || !o.ShortenedAt.IsZero() || o.shortenTry >= shortenTries || now.Before(o.shortenNext) ||
			now.Sub(o.AnswerAt) < shortenAfter || grace < shortenWorth {
			continue
		}
		if longest == nil || o.Deadline.After(longest.Deadline) {
			longest = o
		}
	}
	if longest == nil {
		return nil
	}
	p := longest.Victim.Pod
	select {
	case m.send <- sent{Request{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Shorten: true}, longest, m.snapshot(now)}:
		if longest.shortenTry++; longest.shortenTry == 1 {
			longest.seen.cutAsked = now
		}
		m.shortens = longest
		return longest
	default: // cannot be: nothing else is on its way
		return nil
	}
}

// takeShortening books the answer to the second call of an eviction.
func (m *Manager) takeShortening(now time.Time, o *Outcome, a policy.Answer) {
	m.shortens = nil
	o.Shortening = a
	o.shortenNext = now.Add(max(shortenRetry, min(a.RetryAfter, longestAsked)))
	if a.Verb == policy.Unauthorized {
		m.pause(now, authPause, "the API server does not accept our credentials (401)")
	}
	if a.Verb != policy.Accepted {
		return
	}
	o.ShortenedAt = now
	o.seen.cut, o.seen.stopped = o.shortenTry == 1, a.Stopped // a try before without an answer may have done it
	m.measureCut(o)
	if !o.Open() { // the runtime was asked as well, and its memory was back before the answer
		o.ShortenedAt = o.EndedAt
		return
	}
	if soon := now.Add(shortenExit + exitSlack); soon.Before(o.Deadline) {
		o.Deadline = soon
	}
	m.save(now)
}
