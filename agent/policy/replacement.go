package policy

import "time"

// ReplacementState says how far the pod has come that a controller made in the place of an evicted one.
type ReplacementState string

// The states of a replacement. The zero value means that nobody asked yet.
const (
	ReplacementUnknown     ReplacementState = "unknown"     // it could not be found out
	ReplacementRunning     ReplacementState = "running"     // running and ready, or a Job's pod that succeeded
	ReplacementNotWanted   ReplacementState = "not-wanted"  // its controller is gone or has as many pods as it wants
	ReplacementNone        ReplacementState = "none-yet"    // its controller has made none
	ReplacementUnscheduled ReplacementState = "unscheduled" // on no node; the message is the scheduler's
	ReplacementStarting    ReplacementState = "starting"    // on a node, not ready, and nothing is known to be wrong
	ReplacementSandbox     ReplacementState = "sandbox"     // its sandbox cannot be made
	ReplacementAddresses   ReplacementState = "addresses"   // likewise, as no IP address is left
	ReplacementMount       ReplacementState = "mount"       // a volume cannot be attached or mounted
	ReplacementImage       ReplacementState = "image"       // an image cannot be had
	ReplacementContainer   ReplacementState = "container"   // a container cannot be made, such as for a missing Secret
	ReplacementCrash       ReplacementState = "crash"       // a container ends again and again
)

// Waiting reports a state that is known and not the end: the workload is one pod short.
func (s ReplacementState) Waiting() bool {
	switch s {
	case "", ReplacementUnknown, ReplacementRunning, ReplacementNotWanted:
		return false
	}
	return true
}

// Stuck reports a waiting state that has a cause: it will not pass by waiting a moment.
func (s ReplacementState) Stuck() bool {
	return s.Waiting() && s != ReplacementNone && s != ReplacementStarting
}

// ReplacementQuery asks for the replacement of one evicted pod.
type ReplacementQuery struct {
	Namespace string
	Owner     Owner
	Name      string    // of the evicted pod: a StatefulSet gives its replacement the same
	Since     time.Time // of the eviction
	Known     string    // UID of the pod that the last answer named, "" when it named none: it is preferred
	Not       []string  // UIDs of pods that are not it: the evicted one, replacements of others
}

// Replacement is the answer: the pod as far as there is one.
type Replacement struct {
	State   ReplacementState
	Pod     string // its name
	UID     string
	Node    string    // "" while it is on none
	Message string    // the cluster's own words, at most 256 bytes
	ReadyAt time.Time // when it became ready, in whole seconds of its node's clock; zero: not, or not known
}
