package status

import (
	"fmt"
	"time"
)

// Replacement is what came in the place of an evicted pod.
type Replacement struct {
	DecisionID string    `json:"decisionId"`
	Namespace  string    `json:"namespace"`
	Pod        string    `json:"pod"` // that was evicted
	UID        string    `json:"uid"` // likewise
	EvictedAt  time.Time `json:"evictedAt"`

	State        string     `json:"state"`        // see policy.ReplacementState; empty: not asked yet
	Waits        bool       `json:"waits"`        // it is known not to run: its workload is left alone
	Late         bool       `json:"late"`         // it did not run within 15 min
	Replacement  string     `json:"replacement"`  // name of the new pod; empty: there is none
	Node         string     `json:"node"`         // empty: none
	SameNode     bool       `json:"sameNode"`     // it came back
	Message      string     `json:"message"`      // the cluster's own words
	AfterSeconds *float64   `json:"afterSeconds"` // from the eviction until it was ready; null: it is not
	SeenAt       *time.Time `json:"seenAt"`       // when the cluster was last asked with success
}

// Words says in one line what came of it.
func (r *Replacement) Words() string {
	who := "none"
	if r.Replacement != "" {
		who = r.Namespace + "/" + r.Replacement
	}
	where := ""
	if r.Node != "" {
		where = " on " + r.Node
	}
	if r.SameNode {
		where += " (this node)"
	}
	text := ""
	switch r.State {
	case "":
		text = "not asked for yet"
	case "unknown":
		text = "not known"
	case "running":
		text = who + " Running" + where
		if r.AfterSeconds != nil {
			text += fmt.Sprintf(" after %.0f s", *r.AfterSeconds)
		}
	case "not-wanted":
		text = "none wanted"
	case "none-yet":
		text = "none yet"
	case "unscheduled":
		text = who + " Pending"
	default:
		text = who + " not running" + where + " (" + r.State + ")"
	}
	if r.Message != "" {
		text += ": " + r.Message
	}
	if r.Late && r.State != "running" {
		text += " (for more than 15 min)"
	}
	return text
}
