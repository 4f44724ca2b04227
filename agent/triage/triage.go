// Package triage says why a container ended: who killed it, whose memory limit it ran into, or that it ended by itself; how
// that is known, and what to look at next. It is a function of its arguments: what the kubelet, the runtime, the kernel and
// the API server said. Where they do not suffice or contradict each other the cause is unknown, and the evidence is listed.
package triage

import "time"

// Cause is why a container ended. The list is closed: it labels a metric.
type Cause string

// The causes.
const (
	OOM          Cause = "oom"            // the kernel killed it for lack of memory
	OOMChild     Cause = "oom-child"      // the kernel killed a process of it, and it ended with another code than SIGKILL's
	Liveness     Cause = "liveness-probe" // the kubelet stopped it for its failed liveness probe
	Startup      Cause = "startup-probe"  // likewise for its startup probe
	GraceExpired Cause = "grace-expired"  // its pod was deleted, and it still ran when the grace period was over
	Eviction     Cause = "eviction"       // its pod was evicted: by the kubelet, by this agent, or through the API
	Preemption   Cause = "preemption"     // its pod made room for one of higher priority
	Shutdown     Cause = "node-shutdown"
	Deadline     Cause = "deadline"     // activeDeadlineSeconds of its pod were over
	Terminated   Cause = "terminated"   // its pod was deleted, and it ended within the grace period
	KubeletStop  Cause = "kubelet-stop" // the kubelet stopped it for another reason, which it names
	RuntimeLost  Cause = "runtime-lost" // the runtime or the kubelet lost it: its code is made up
	StartError   Cause = "start-error"  // it never ran
	Crash        Cause = "crash"        // a signal of its own fault, such as SIGSEGV or SIGABRT
	Heap         Cause = "heap"         // the application's own memory limit: it says so itself, and the kernel killed nobody
	Application  Cause = "application"  // it ended by itself with a code of its own
	Unknown      Cause = "unknown"
)

// Certainty is how sure a verdict is.
type Certainty string

// The three degrees.
const (
	Known    Certainty = "known"  // a party that did it, or saw it, says so
	Likely   Certainty = "likely" // what is known fits, and nothing that was seen contradicts it
	NotKnown Certainty = "unknown"
)

// Exit codes of a container whose first process died of a signal are 128 + the signal.
const (
	codeKill = 137
	codeTerm = 143
	codeLost = 255 // containerd's unknownExitCode, beside the reason "Unknown"
)

// Case is one ended container and all that is known around it. Absent times are zero.
type Case struct {
	Container string // name in the pod
	Code      int32
	Signal    int32  // as the runtime states it apart from the code, 0 where it does not
	Reason    string // of the runtime or the kubelet: Error, OOMKilled, StartError, ContainerStatusUnknown
	Message   string // termination message: the application's own words, or the runtime's
	Restarts  int32  // how often it had been restarted before
	Started   time.Time
	Finished  time.Time // pod status cuts it to whole seconds

	Kills   []Kill // OOM kills that were seen in this container
	Blind   string // why OOM kills may have been missed; empty: they are all seen
	Pod     Pod
	Evicted *Evicted // this agent's own eviction of the pod, nil: none

	Liveness, Startup *Probe // nil: none, or not known

	Events   []Event // of the pod
	NoEvents string  // why the pod's Events are not known; empty: they are
	Volumes  []Volume
	NoVolume string // why the use of the volumes is not known; empty: it is
}

// Kill is one OOM kill in the container.
type Kill struct {
	At      time.Time
	PID     uint32
	Process string
	LimitOf string  // whose memory had run out: container, pod, kubepods, node, ...; none: no limit of container or pod
	Limit   *uint64 // bytes, nil: none or not known
}

// Pod is what the API server says of the container's pod. The zero value: nothing is known.
type Pod struct {
	Known            bool
	Reason           string // status.reason: Evicted, Terminated, DeadlineExceeded, Preempting
	Message          string // status.message
	Deleted          time.Time
	DeleteGrace      time.Duration // metadata.deletionGracePeriodSeconds: Deleted is the end of it
	Grace            time.Duration // spec.terminationGracePeriodSeconds
	Disruption       string        // reason of the condition DisruptionTarget
	DisruptionDetail string
	DisruptedAt      time.Time
}

// Evicted is an eviction by this agent that the API server accepted.
type Evicted struct {
	Decision string
	At       time.Time
	Short    bool // its grace period was cut short
}

// Probe is the timing of a liveness or startup probe.
type Probe struct {
	Delay, Period, Timeout time.Duration
	Failures               int32
	Grace                  time.Duration // of the probe itself, 0: the pod's
}

// earliest is how long after its start a container can be stopped by the probe at the soonest.
func (p *Probe) earliest() time.Duration {
	return p.Delay + time.Duration(max(p.Failures, 1)-1)*p.Period
}

// Event is one Kubernetes Event of the pod.
type Event struct {
	Warning   bool
	Reason    string
	Message   string
	Container string // that it is about; empty: the pod
	Count     int32
	First     time.Time
	Last      time.Time
}

// Volume is the use of one volume, or of the node's file system.
type Volume struct {
	Name               string
	Used, Capacity     uint64 // bytes
	Inodes, InodesUsed uint64 // 0: not known
}

// Fill is how full the volume is, 0 to 1: of bytes or of inodes, whichever is more. A Capacity of 0 counts as empty.
func (v *Volume) Fill() float64 {
	fill := 0.0
	if v.Capacity > 0 {
		fill = float64(v.Used) / float64(v.Capacity)
	}
	if v.Inodes > 0 {
		fill = max(fill, float64(v.InodesUsed)/float64(v.Inodes))
	}
	return fill
}

// Verdict is what came of it.
type Verdict struct {
	Cause     Cause
	Certainty Certainty
	LimitOf   string  // whose memory limit, for OOM and OOMChild
	Limit     *uint64 // bytes, nil: none or not known
	How       string  // how the cause is known, in words
	Evidence  []string
	Next      string // what to look at next, one sentence
}

// Judge says why the container ended. ok is false for one that ended with code 0: that is no case.
func Judge(c *Case) (v Verdict, ok bool) {
	if c.Code == 0 {
		return Verdict{}, false
	}
	v = c.judge()
	v.Evidence = c.evidence()
	v.Next = c.next(&v)
	return v, true
}
