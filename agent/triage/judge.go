package triage

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// cut is what pod status leaves away from a time; skew is what clocks of the API server and of the node may differ.
	cut  = time.Second
	skew = time.Second
	// nearKill is how long before the end of a container an OOM kill of it counts as its cause: the kernel's victim is gone
	// within milliseconds, a shell that waits for it ends right after.
	nearKill = 2 * time.Second
	// stopSlack is how long after the grace period a stopped container may end: the runtime under pressure.
	stopSlack = 15 * time.Second
)

// The kubelet's and the runtime's own words.
const (
	reasonOOMKilled     = "OOMKilled"
	reasonStatusUnknown = "ContainerStatusUnknown" // the kubelet's, with code 137: "could not be located when the pod was terminated"
	reasonUnknown       = "Unknown"                // containerd's, with code 255
	eventKilling        = "Killing"
	eventUnhealthy      = "Unhealthy"
)

func (c *Case) judge() Verdict {
	switch {
	case c.Reason == reasonStatusUnknown:
		return sure(RuntimeLost, "the kubelet could not find the container any more and made code %d up (%s)", c.Code, c.Reason)
	case c.Reason == reasonUnknown && c.Code == codeLost:
		return sure(RuntimeLost, "the runtime lost the container and made code %d up (reason %s)", c.Code, c.Reason)
	case c.Reason == "StartError" || c.Reason == "ContainerCannotRun" || c.Reason == "RunContainerError":
		return sure(StartError, "the runtime could not start it (%s)", c.Reason)
	}
	stop := c.stopper()
	if v, ok := c.oom(stop); ok {
		return v
	}
	if stop != nil {
		return *stop
	}
	return c.alone()
}

func sure(cause Cause, format string, args ...any) Verdict {
	return Verdict{Cause: cause, Certainty: Known, How: fmt.Sprintf(format, args...)}
}

func likely(cause Cause, format string, args ...any) Verdict {
	return Verdict{Cause: cause, Certainty: Likely, How: fmt.Sprintf(format, args...)}
}

func unclear(format string, args ...any) Verdict {
	return Verdict{Cause: Unknown, Certainty: NotKnown, How: fmt.Sprintf(format, args...)}
}

// lastKill returns the newest OOM kill right before the end of the container, and how many came earlier.
func (c *Case) lastKill() (near *Kill, earlier int) {
	for i := range c.Kills {
		k := &c.Kills[i]
		switch {
		case !c.Started.IsZero() && k.At.Before(c.Started.Add(-cut)): // of another run of a container with the same name
		case !c.Finished.IsZero() && k.At.After(c.Finished.Add(cut+skew)):
		case !c.Finished.IsZero() && k.At.Before(c.Finished.Add(-nearKill)):
			earlier++
		case near == nil || k.At.After(near.At):
			near = k
		}
	}
	return near, earlier
}

// oom answers whether the kernel killed it for lack of memory; stop is who else was about to end it, nil: nobody.
//
// The reason OOMKilled alone says that some process of the container's cgroup was OOM-killed at some time: containerd sets it
// on the cgroup's event, whichever process it was.
func (c *Case) oom(stop *Verdict) (Verdict, bool) {
	near, earlier := c.lastKill()
	var v Verdict
	switch {
	case near != nil && c.Code == codeKill && stop == nil:
		v = sure(OOM, "the kernel's OOM killer took process %s (%d) of it at %s, and it ended with SIGKILL's code", name(near.Process), near.PID, clock(near.At))
	case near != nil && c.Code == codeKill:
		v = likely(OOM, "the kernel's OOM killer took process %s (%d) of it at %s, in the moment when it ended; it was being stopped too: %s", name(near.Process), near.PID, clock(near.At), stop.How)
	case near != nil && stop == nil:
		v = likely(OOMChild, "the kernel's OOM killer took process %s (%d) of it at %s, right before it ended with code %d", name(near.Process), near.PID, clock(near.At), c.Code)
	case near != nil || c.Reason != reasonOOMKilled || earlier > 0:
		// Who stops it is the cause; or what the runtime calls OOMKilled was an earlier kill of a child, which it survived.
		return Verdict{}, false
	case stop != nil && stop.Certainty == Known && stop.Cause != Liveness && stop.Cause != Startup && stop.Cause != KubeletStop:
		return Verdict{}, false // its pod had to go in any case
	case stop != nil:
		return unclear("the runtime says that a process of it was OOM-killed, no such kill was seen, and it was being stopped too: %s", stop.How), true
	case c.Code != codeKill:
		v = likely(OOMChild, "the runtime says that a process of it was OOM-killed (reason OOMKilled), and it ended with code %d", c.Code)
	default:
		v = likely(OOM, "the runtime says that a process of it was OOM-killed (reason OOMKilled), and it ended with SIGKILL's code; the kill itself was not seen")
	}
	v.LimitOf = "unknown"
	if near != nil && near.LimitOf != "" {
		v.LimitOf, v.Limit = near.LimitOf, near.Limit
	}
	return v, true
}

// stopper returns who ended the container from outside, nil when nothing says that anybody did.
func (c *Case) stopper() *Verdict {
	for _, look := range []func() *Verdict{c.pod, c.probed, c.deleted} {
		if v := look(); v != nil {
			return v
		}
	}
	return nil
}

// after reports whether the container ended after something that began at a time.
func (c *Case) after(t time.Time) bool {
	return c.Finished.IsZero() || !c.Finished.Add(cut+skew).Before(t)
}

// ownFault: the signals that nobody sends to stop a container.
func (c *Case) ownFault() bool {
	n := c.signal()
	return n != 0 && n != 9 && n != 15 && n != 2 && n != 3 && n != 1
}

// pod says what ended the whole pod.
func (c *Case) pod() *Verdict {
	p := &c.Pod
	if c.ownFault() || !p.DisruptedAt.IsZero() && !c.after(p.DisruptedAt) {
		return nil
	}
	ended := func(v Verdict) *Verdict {
		if c.Code == codeKill {
			v.How += "; it did not end on SIGTERM within the grace period"
		}
		return &v
	}
	if e := c.Evicted; e != nil && c.after(e.At) {
		how := ""
		if e.Short {
			how = ", its grace period cut short"
		}
		return ended(sure(Eviction, "evicted by Spillway at %s%s (decision %s)", clock(e.At), how, e.Decision))
	}
	switch {
	case p.Reason == "Evicted":
		return ended(sure(Eviction, "evicted by the kubelet: %s", p.Message))
	case p.Reason == "DeadlineExceeded":
		return ended(sure(Deadline, "the kubelet ended the pod: activeDeadlineSeconds are over"))
	case p.Reason == "Preempting":
		return ended(sure(Preemption, "the kubelet ended the pod for one of critical priority: %s", p.Message))
	case p.Reason == "Terminated" || p.Reason == "NodeShutdown" || p.Reason == "Shutdown":
		return ended(sure(Shutdown, "the kubelet ended the pod, as the node shuts down: %s", p.Message))
	case p.Disruption == "EvictionByEvictionAPI":
		return ended(sure(Eviction, "evicted through the Eviction API, not by this agent"))
	case p.Disruption == "DeletionByTaintManager":
		return ended(sure(Eviction, "deleted for a taint of the node that it does not tolerate"))
	case p.Disruption == "PreemptionByScheduler":
		return ended(sure(Preemption, "the scheduler took its place for a pod of higher priority: %s", p.DisruptionDetail))
	case p.Disruption == "TerminationByKubelet":
		return ended(sure(Eviction, "ended by the kubelet: %s", p.DisruptionDetail))
	}
	return nil
}

// inLife reports whether a time of the kubelet falls between start and end: both are of the node's clock, cut to seconds alike.
func (c *Case) inLife(t time.Time) bool {
	return (c.Started.IsZero() || !t.Before(c.Started.Add(-cut))) && (c.Finished.IsZero() || t.Before(c.Finished.Add(cut)))
}

// occurred returns when an Event about this container happened in its life. The kubelet folds equal Events: of those in between
// only the count is left. Where one of the two times that it keeps fits, sure is true; where the Event began before and goes
// on after, this run may be among the others.
func (c *Case) occurred(e *Event) (at time.Time, sure, ok bool) {
	switch {
	case e.Container != "" && e.Container != c.Container:
		return time.Time{}, false, false
	case c.inLife(e.Last):
		return e.Last, true, true
	case c.inLife(e.First):
		return e.First, true, true
	case e.Count >= 3 && e.First.Before(c.Started) && e.Last.After(c.Finished) && !c.Finished.IsZero():
		return c.Finished, false, true
	}
	return time.Time{}, false, false
}

// probed says that the kubelet stopped this container alone, for a probe or another reason that it names.
func (c *Case) probed() *Verdict {
	if c.ownFault() {
		return nil
	}
	for i := range c.Events {
		e := &c.Events[i]
		_, certain, ok := c.occurred(e)
		if e.Reason != eventKilling || !ok || e.Container == "" && !strings.Contains(e.Message, c.Container) {
			continue
		}
		say, what := sure, e.Message
		if !certain {
			say, what = likely, fmt.Sprintf("%s (%d times, before and after this end)", e.Message, e.Count)
		}
		switch text := strings.ToLower(e.Message); {
		case strings.Contains(text, "failed liveness probe"):
			v := say(Liveness, "the kubelet's Event says: %s; %s", what, c.stopped(c.Liveness))
			return &v
		case strings.Contains(text, "failed startup probe"):
			v := say(Startup, "the kubelet's Event says: %s; %s", what, c.stopped(c.Startup))
			return &v
		case strings.Contains(text, "stopping container"):
			continue // its pod is being deleted, which is told by who did it
		default:
			v := say(KubeletStop, "the kubelet's Event says: %s", what)
			return &v
		}
	}
	if c.Code != codeKill && c.Code != codeTerm {
		return nil
	}
	// Without the kubelet's own word: enough failures for it to act, up to the end.
	for i := range c.Events {
		e := &c.Events[i]
		at, certain, ok := c.occurred(e)
		if e.Reason != eventUnhealthy || e.Container != c.Container || !ok || !certain {
			continue
		}
		switch text := strings.ToLower(e.Message); {
		case strings.HasPrefix(text, "liveness probe") && c.Liveness.acts(c, e, at):
			v := likely(Liveness, "its liveness probe failed until it ended (%s); %s", e.Message, c.stopped(c.Liveness))
			return &v
		case strings.HasPrefix(text, "startup probe") && c.Startup.acts(c, e, at):
			v := likely(Startup, "its startup probe failed until it ended (%s); %s", e.Message, c.stopped(c.Startup))
			return &v
		}
	}
	return nil
}

// acts reports whether the kubelet had reason to stop the container for the probe, which failed at a time: often enough, in a
// run that was long enough, with at most its grace period from the last failure to the end. The count of a folded Event is of
// all runs, so that it can only rule out.
func (p *Probe) acts(c *Case, e *Event, at time.Time) bool {
	switch {
	case p == nil || e.Count < p.Failures:
		return false
	case c.Started.IsZero() || c.Finished.IsZero():
		return true
	}
	if !at.Equal(e.Last) { // the first failure of a series that goes on in a later run
		at = at.Add(p.earliest() - p.Delay)
	}
	return c.Finished.Sub(c.Started)+cut >= p.earliest() && c.Finished.Sub(at) <= c.grace(p)+stopSlack
}

func (c *Case) grace(p *Probe) time.Duration {
	if p != nil && p.Grace > 0 {
		return p.Grace
	}
	return c.Pod.Grace
}

// stopped says how it took the kubelet's stop.
func (c *Case) stopped(p *Probe) string {
	switch c.Code {
	case codeKill:
		return fmt.Sprintf("it did not end on SIGTERM within %s and was killed", c.grace(p))
	case codeTerm:
		return "it ended on SIGTERM"
	}
	return fmt.Sprintf("it answered SIGTERM with code %d", c.Code)
}

// deleted says that its pod was deleted before it ended.
func (c *Case) deleted() *Verdict {
	p := &c.Pod
	if p.Deleted.IsZero() || c.ownFault() || !c.after(p.Deleted.Add(-p.DeleteGrace)) {
		return nil
	}
	switch {
	case c.Code == codeKill && !c.Finished.Add(cut+skew).Before(p.Deleted):
		v := sure(GraceExpired, "its pod was deleted, and it still ran when the grace period of %s was over", p.DeleteGrace)
		return &v
	case c.Code == codeKill:
		// Nobody kills before the end of the grace period that the API server knows, but a later, shorter one does.
		v := unclear("its pod was being deleted, but it was killed %.0f s before the grace period of %s was over", p.Deleted.Sub(c.Finished).Seconds(), p.DeleteGrace)
		return &v
	case c.Code == codeTerm:
		v := sure(Terminated, "its pod was deleted, and it ended on SIGTERM")
		return &v
	}
	v := likely(Terminated, "its pod was deleted, and it ended with code %d within the grace period", c.Code)
	return &v
}

// heapWords are what runtimes of languages say when their own limit, or an allocation, ends them.
var heapWords = []string{
	"java.lang.outofmemoryerror", "outofmemoryerror", "javascript heap out of memory", "memoryerror", "fatal error: runtime: out of memory",
	"std::bad_alloc", "allowed memory size of", "cannot allocate memory", "memory allocation of", "system.outofmemoryexception", "nomemoryerror",
}

// alone is for a container that nothing says anybody stopped.
func (c *Case) alone() Verdict {
	heap := slices.ContainsFunc(heapWords, func(w string) bool { return strings.Contains(strings.ToLower(c.Message), w) })
	switch n := c.signal(); {
	case c.Code == codeKill:
		switch {
		case c.Blind != "":
			return unclear("killed by SIGKILL; whether for lack of memory is not known: %s", c.Blind)
		case c.NoEvents != "":
			return unclear("killed by SIGKILL, and not by the kernel's OOM killer; by whom is not known: %s", c.NoEvents)
		}
		return unclear("killed by SIGKILL, and not by the kernel's OOM killer; neither kubelet nor API server says by whom")
	case c.Code == codeTerm:
		return unclear("ended by SIGTERM; neither kubelet nor API server says who sent it")
	case heap:
		return likely(Heap, "its own last words name its memory, and the kernel's OOM killer did not take it: %s", clip(c.Message))
	case n != 0 && c.ownFault():
		return sure(Crash, "killed by %s, a fault of its own", signalName(n))
	case n != 0:
		return unclear("ended by %s; who sent it is not known", signalName(n))
	case c.Code == 126 || c.Code == 127:
		return likely(StartError, "code %d: its command could not be run (126) or was not found (127)", c.Code)
	case c.Code == codeLost:
		return likely(Application, "code 255: the application ended with -1, or a program in between lost it")
	}
	return likely(Application, "it ended by itself with code %d", c.Code)
}

// signal is the signal that ended it, 0: none. A code above 128 may also be a shell's for its child, or a number of the
// application's own choice; beyond the signals that exist it is the latter.
func (c *Case) signal() int32 {
	if c.Signal != 0 {
		return c.Signal
	}
	if n := c.Code - 128; n > 0 && n <= 31 {
		return n
	}
	return 0
}

var signals = map[int32]string{1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM", 24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS"}

func signalName(n int32) string {
	if s, ok := signals[n]; ok {
		return s
	}
	return fmt.Sprintf("signal %d", n)
}
