package policy

import "time"

// What an exit is taken to last while nothing was learned of the workload.
const (
	maxGrace  = 30 * time.Second // the longest grace period that is waited for
	usualExit = 3 * time.Second  // most programs end within it
	hookExit  = 15 * time.Second // with a preStop hook that is no sleep
)

// Timing is what an eviction takes besides the victim's exit, as measured on this node; a zero field is not measured yet.
type Timing struct {
	Call  time.Duration `json:",omitempty"` // from the request until the pod is terminating; not measured: 1 s
	Cut   time.Duration `json:",omitempty"` // from the call that cuts the grace short to the end; not measured: 2 s with Stops, else 3.5 s
	Back  float64       `json:",omitempty"` // bytes per second by which an exiting pod's memory comes back; not measured: 4 GiB/s
	Stops bool          `json:",omitempty"` // the container runtime may be asked to stop the containers of a cut
}

// Not measured yet. usualCut is what the kubelet takes by itself: a preStop of 1 s at most, sidecars in order, and 2 s. A runtime
// that is asked stops them at once, in 1.1 s on a quiet node.
const (
	usualCall = time.Second
	usualCut  = 3500 * time.Millisecond
	usualStop = 2 * time.Second
	usualBack = 4 << 30
)

// Filled returns t with the usual value of what is not measured yet.
func (t Timing) Filled() Timing {
	if t.Call <= 0 {
		t.Call = usualCall
	}
	switch {
	case t.Cut > 0:
	case t.Stops:
		t.Cut = usualStop
	default:
		t.Cut = usualCut
	}
	if !(t.Back > 0) {
		t.Back = usualBack
	}
	return t
}

// Extra time of a cut, and of pods whose memory outlives their processes until its volumes are unmounted.
const (
	sidecarCut  = time.Second
	unmountTime = 2 * time.Second
	memoryPart  = 10 // of what it holds, one part in so many in memory-backed volumes matters
)

// settleTime is added to every soft lead: what is measured varies.
const settleTime = time.Second

// Patience says how long Spillway waits for growth to end by itself.
type Patience string

// The settings of Patience. Balanced is the default.
const (
	Early    Patience = "early"    // until the whole grace period, 30 s at most, still fits
	Balanced Patience = "balanced" // until the exit that is expected still fits
	Late     Patience = "late"     // until a cut still fits
)

// firstGuess returns what the exit of p is taken to last while nothing was learned.
func firstGuess(p *Pod) time.Duration {
	exit := usualExit
	switch {
	case p.PreStopSleep > 0:
		exit = p.PreStopSleep + usualExit
	case p.PreStopHook:
		exit = hookExit
	case p.Grace != maxGrace:
		exit = maxGrace // a grace period that was set may be used
	}
	return min(exit, p.Grace, maxGrace)
}

// leads returns the two lead times of c. The soft one is how long before the threshold its eviction has to be asked for, so that
// it exits by itself and its memory comes back; the hard one is when a cut of the grace period has to be, and the soft one where
// none may be. learned reports whether the exit was learned from its workload; it is never more than the grace.
func (c *Candidate) leads(in *Input) (soft, hard time.Duration, learned bool) {
	t := in.Timing.Filled()
	exit := firstGuess(c.Pod)
	if learned = c.Learned > 0; learned {
		exit = min(c.Learned, c.Pod.Grace, maxGrace)
	}
	// Its own growth ends with its processes; from then on what comes back has to outrun the others only.
	others := max(0, in.NodeGrowth-c.Reading.Growth)
	back := time.Duration(min(float64(c.Reading.Release)/t.Back*min(1, others/t.Back), maxGrace.Seconds()) * float64(time.Second))
	hard = t.Call + back + t.Cut
	soft = exit + back + t.Call + settleTime
	if c.Pod.Sidecars {
		hard += sidecarCut
	}
	if c.Pod.Volumes.MemoryEmptyDir && c.Reading.Held.Shmem > c.Reading.WorkingSet/memoryPart {
		hard, soft = hard+unmountTime, soft+unmountTime
	}
	if in.Config.Patience == Early {
		soft = max(soft, min(c.Pod.Grace, maxGrace)+settleTime)
	}
	if in.Config.KeepGrace {
		return soft, soft, learned
	}
	if in.Config.Patience == Late {
		soft = hard
	}
	return max(soft, hard), hard, learned
}
