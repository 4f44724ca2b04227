package policy

import "time"

// Verb classifies the API server's answer to one Eviction call by what has to happen next (see Answer).
type Verb uint8

// The answers that an Eviction call can get.
const (
	Unknown      Verb = iota // no answer: time-out or cut connection; the eviction may or may not have happened
	Accepted                 // 200 or 201
	Gone                     // 404, or 409 on the UID precondition: the pod that was meant does not exist any more
	Budget                   // 429 with cause DisruptionBudget: try the next candidate
	Backoff                  // other 429, 5xx: the API server cannot serve it now
	Unauthorized             // 401: stop evicting and alert
	Blocked                  // 403, 422, 500 "more than one PodDisruptionBudget": next candidate
)

var verbs = [...]string{"unknown", "accepted", "gone", "budget", "backoff", "unauthorized", "blocked"}

// String returns the verb in lower case, as logs, metrics and status print it.
func (v Verb) String() string {
	if int(v) < len(verbs) {
		return verbs[v]
	}
	return "invalid"
}

// Answer is the outcome of one Eviction call as far as the API server told it.
type Answer struct {
	Verb       Verb
	Code       int           // HTTP status code, 0 when there was no answer
	Message    string        // the server's own words, for the log and the record
	RetryAfter time.Duration // from the server; 0 when it named none
	SentAt     time.Time     // when the request was on the wire; zero: it never was, or nobody looked
	Stopped    bool          // of a call that cuts a grace period short: the container runtime has stopped the containers too
}
