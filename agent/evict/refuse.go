package evict

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"spillway/agent/policy"
)

// refused is what is remembered of calls that led to no eviction.
type refused struct {
	pods    map[string]refusal // by pod UID
	doubts  map[string]doubt   // likewise
	doubted string             // the pod of the newest unclear answer, "" after a clear one
	others  bool               // unclear answers in a row were about different pods
	failed  int                // answers in a row that a webhook failed
}

// webhookPods is how many calls in a row may fail at a webhook before it is taken for one of all pods.
const webhookPods = 3

type refusal struct {
	until time.Time
	why   string
}

// doubt counts the unclear answers in a row to calls for one pod.
type doubt struct {
	times int
	at    time.Time // of the newest
}

func newRefused() refused {
	return refused{pods: map[string]refusal{}, doubts: map[string]doubt{}}
}

// RefusedBefore returns why a pod that was refused a short time ago is not asked for again, "" when it may be. A pod whose
// eviction goes on is not asked for either.
func (m *Manager) RefusedBefore(now time.Time, uid string) string {
	for _, o := range m.outcomes {
		if o.Open() && !o.DryRun && o.Victim.Pod.UID == uid {
			return "was asked to go already (" + string(o.State) + ")"
		}
	}
	r, ok := m.refused.pods[uid]
	if !ok || !now.Before(r.until) {
		delete(m.refused.pods, uid)
		return ""
	}
	return r.why
}

// refuse leaves the pod of o alone for d.
func (m *Manager) refuse(now time.Time, o *Outcome, d time.Duration, why string) {
	if len(m.refused.pods) >= maxRefusals {
		clear(m.refused.pods)
	}
	m.refused.pods[o.Victim.Pod.UID] = refusal{now.Add(d), why}
}

// doubt counts an unclear answer: the cause may be the pod or the API server. again is true from the second in a row for the
// same pod on: the pod is the cause. others is true when the unclear answers in a row were about different pods: the API
// server is.
func (m *Manager) doubt(now time.Time, o *Outcome) (again, others bool) {
	r, uid := &m.refused, o.Victim.Pod.UID
	d := r.doubts[uid]
	if now.Sub(d.at) > blockedMemory {
		d = doubt{}
	}
	if len(r.doubts) >= maxRefusals {
		clear(r.doubts)
	}
	r.doubts[uid] = doubt{d.times + 1, now}
	r.others = r.others || r.doubted != "" && r.doubted != uid
	r.doubted = uid
	return d.times > 0, r.others
}

// clear ends the doubts about the pod of o, and about the API server.
func (m *Manager) clear(o *Outcome) {
	delete(m.refused.doubts, o.Victim.Pod.UID)
	m.refused.doubted, m.refused.others, m.refused.failed, m.backoff = "", false, 0, 0
}

// backOff books an answer that asks for another try later. What is about the API server pauses all evictions. What may be
// about the pod does so once, and from the second in a row on leaves the pod alone instead; it does both when other pods
// are answered like that too.
func (m *Manager) backOff(now time.Time, o *Outcome) {
	a := &o.Answer
	if a.Code == 0 {
		m.pauseLonger(now, a.RetryAfter, "no eviction could be asked for: "+a.Message)
		return
	}
	why := fmt.Sprintf("the API server cannot take evictions now (%d): %s", a.Code, a.Message)
	if busy(a) {
		m.pauseLonger(now, a.RetryAfter, why)
		return
	}
	said := fmt.Sprintf("the API server could not evict it (%d): %s", a.Code, a.Message)
	if webhookFailed(a) { // webhooks are for some pods only, however many these are
		m.refuse(now, o, unclearMemory, said)
		if m.refused.failed++; m.refused.failed > webhookPods {
			m.pauseLonger(now, a.RetryAfter, why)
		}
		return
	}
	again, others := m.doubt(now, o)
	if again {
		m.refuse(now, o, unclearMemory, said)
	}
	if !again || others {
		m.pauseLonger(now, a.RetryAfter, why)
	}
}

// pauseLonger pauses all evictions, twice as long as the time before and at least for as long as the API server asks.
func (m *Manager) pauseLonger(now time.Time, asked time.Duration, why string) {
	m.backoff = min(max(2*m.backoff, firstBackoff), longestBackoff)
	m.pause(now, max(m.backoff, min(asked, longestAsked)), why)
}

// busy reports whether the API server sheds load: priority and fairness, with a Retry-After or in these words.
func busy(a *policy.Answer) bool {
	return a.Code == http.StatusTooManyRequests && !webhookFailed(a) && (a.RetryAfter > 0 || says(a, "too many requests"))
}

// denied reports whether an admission webhook refused this pod's eviction. It may do so with any code.
func denied(a *policy.Answer) bool {
	switch a.Verb {
	case policy.Backoff, policy.Blocked, policy.Unauthorized:
		return says(a, "admission webhook") && says(a, "denied")
	}
	return false
}

// webhookFailed reports whether an admission webhook that must be asked did not work. Webhooks are for some pods only.
func webhookFailed(a *policy.Answer) bool {
	return says(a, "failed calling webhook") || says(a, "failed to call webhook")
}

func says(a *policy.Answer, words string) bool {
	return strings.Contains(strings.ToLower(a.Message), words)
}
