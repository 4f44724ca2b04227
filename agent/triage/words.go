package triage

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	fullFrom    = 0.95 // a volume that counts as full
	maxEvents   = 8    // lines of evidence
	maxKills    = 4    // likewise
	maxWords    = 240  // bytes of a message in a line
	earlyWithin = 3    // a probe that stops within so many times its earliest moment is over-eager
)

func name(process string) string {
	if process == "" {
		return "(unnamed)"
	}
	return process
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05") }

// clip makes one line of at most maxWords bytes; what is too long loses its beginning: last words stand last.
func clip(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) <= maxWords {
		return s
	}
	s = s[len(s)-maxWords:]
	for !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return "..." + s
}

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// ran is how long it ran, 0 when that is not known.
func (c *Case) ran() time.Duration {
	if c.Started.IsZero() || c.Finished.Before(c.Started) {
		return 0
	}
	return c.Finished.Sub(c.Started)
}

// evidence lists what is known and what is not, the strongest first.
func (c *Case) evidence() []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	say("code %d, reason %s, ran %s, restarted %d times before", c.Code, cmp.Or(c.Reason, "none"), c.ran().Round(time.Millisecond), c.Restarts)
	if c.Message != "" {
		say("last words: %s", clip(c.Message))
	}
	kills := c.Kills
	if n := len(kills) - maxKills; n > 0 {
		say("%d more OOM kills before", n)
		kills = kills[n:]
	}
	for _, k := range kills {
		limit := "no limit is known"
		if k.Limit != nil {
			limit = "limit " + mib(*k.Limit)
		}
		say("OOM kill of process %s (%d) at %s, limit of: %s, %s", name(k.Process), k.PID, clock(k.At), cmp.Or(k.LimitOf, "unknown"), limit)
	}
	switch {
	case c.Blind != "":
		say("OOM kills: may have been missed, %s", c.Blind)
	case len(c.Kills) == 0:
		say("OOM kills: none in this container")
	}
	if p := &c.Pod; p.Known {
		if !p.Deleted.IsZero() {
			say("pod deleted: grace period of %s over at %s", p.DeleteGrace, clock(p.Deleted))
		}
		if p.Reason != "" {
			say("pod status: %s %s", p.Reason, clip(p.Message))
		}
		if p.Disruption != "" {
			say("pod disrupted: %s %s", p.Disruption, clip(p.DisruptionDetail))
		}
	} else {
		say("pod status: not known")
	}
	if c.Liveness != nil {
		say("liveness probe: %s", c.Liveness.words())
	}
	if c.Startup != nil {
		say("startup probe: %s", c.Startup.words())
	}
	return append(append(out, c.eventLines()...), c.volumeLine())
}

// words is the probe's timing, and what follows from it.
func (p *Probe) words() string {
	return fmt.Sprintf("first after %s, every %s, timeout %s, %d failures: it can stop the container %s after its start", p.Delay, p.Period, p.Timeout, max(p.Failures, 1), p.earliest())
}

func (c *Case) eventLines() []string {
	var out []string
	events := slices.DeleteFunc(slices.Clone(c.Events), func(e Event) bool { return !e.Warning && e.Reason != eventKilling })
	slices.SortStableFunc(events, func(a, b Event) int { return b.Last.Compare(a.Last) })
	for i, e := range events {
		if i == maxEvents {
			out = append(out, fmt.Sprintf("%d more Events", len(events)-maxEvents))
			break
		}
		kind, of := "Warning", ""
		if !e.Warning {
			kind = "Event"
		}
		if e.Container != "" {
			of = " of " + e.Container
		}
		out = append(out, fmt.Sprintf("%s %s%s, %d times, last at %s: %s", kind, e.Reason, of, max(e.Count, 1), clock(e.Last), clip(e.Message)))
	}
	switch {
	case c.NoEvents != "":
		out = append(out, "Events: not known, "+c.NoEvents)
	case len(events) == 0:
		out = append(out, "Events: no Warning of this pod")
	}
	return out
}

// fullest returns the volume that is most full, nil: none is known.
func (c *Case) fullest() *Volume {
	var out *Volume
	for i := range c.Volumes {
		if v := &c.Volumes[i]; out == nil || v.Fill() > out.Fill() {
			out = v
		}
	}
	return out
}

// noSpace reports whether the application itself says that it could not write: ENOSPC or EDQUOT in words.
func (c *Case) noSpace() bool {
	text := strings.ToLower(c.Message)
	return strings.Contains(text, "no space left on device") || strings.Contains(text, "disk quota exceeded")
}

func (c *Case) volumeLine() string {
	v := c.fullest()
	switch {
	case v == nil && c.NoVolume != "":
		return "volumes: not known, " + c.NoVolume
	case v == nil:
		return "volumes: the kubelet measures none of this pod"
	}
	line := fmt.Sprintf("fullest volume: %s, %.0f %% full (%s of %s", v.Name, 100*v.Fill(), mib(v.Used), mib(v.Capacity))
	if v.Inodes > 0 {
		line += fmt.Sprintf(", %d of %d inodes", v.InodesUsed, v.Inodes)
	}
	line += ")"
	if c.NoVolume != "" {
		line += "; " + c.NoVolume
	}
	return line
}

// next is what to look at next.
func (c *Case) next(v *Verdict) string {
	switch v.Cause {
	case OOM, OOMChild:
		return oomNext(v)
	case Liveness, Startup:
		return c.probeNext(v.Cause)
	}
	if full := c.fullest(); full != nil && full.Fill() >= fullFrom && v.Cause != Eviction && v.Cause != Terminated {
		return fmt.Sprintf("Volume %s is %.0f %% full: make room in it or enlarge it, then see whether the container still ends.", full.Name, 100*full.Fill())
	}
	if c.noSpace() && v.Cause != Eviction && v.Cause != Terminated {
		return "Its last words say that a file system is full: find out which of its volumes it writes to, and how full that is."
	}
	switch v.Cause {
	case GraceExpired:
		return "Make the application end on SIGTERM (as process 1 it needs a handler), shorten its preStop hook, or raise terminationGracePeriodSeconds."
	case Eviction:
		return "See what the node was short of: the message above, and 'spillway status' on the node for its memory."
	case Preemption:
		return "See which pod of higher priority took the place, and whether this one's priority is right."
	case Shutdown:
		return "Nothing is wrong with the container: see why the node was shut down."
	case Deadline:
		return "See why the work took longer than activeDeadlineSeconds, or raise it."
	case Terminated:
		return "Nothing has to be done: the pod was deleted and the container ended in time."
	case KubeletStop:
		return "See the kubelet's words above: it stopped this container itself, for its definition or a hook."
	case RuntimeLost:
		return "See the logs of the kubelet and the runtime around this time for a restart of the node or the runtime: the code says nothing of the application."
	case StartError:
		return "Check the container's command, its image and the files that are mounted into it: it never came to run its program."
	case Heap:
		return "Compare the limit of the application's own heap (such as -Xmx or --max-old-space-size) with what it needs: the container's memory limit was not what ended it."
	case Crash:
		if c.signal() == 6 {
			return "Read the container's previous log for why it aborted: a failed assertion, or a heap of its own that is too small; its memory limit was not what ended it."
		}
		return "Read the container's previous log and look for a core dump: it crashed by itself."
	case Application:
		return "Read the container's previous log (kubectl logs --previous): the application chose to end with this code."
	}
	return c.unknownNext()
}

func oomNext(v *Verdict) string {
	switch v.LimitOf {
	case "container":
		return "Compare the container's memory limit with what it usually needs, and the heap that its runtime is allowed with the limit; then look for a leak."
	case "pod":
		return "Add up what the containers of the pod use together: its common limit was reached, and the killed process need not be the one that grew."
	case "unknown":
		return "Find out whose limit was reached (dmesg on the node): the container's, the pod's, or the node's memory as a whole."
	}
	return "See what filled the node at that time: the killed process was not at a limit of its own, so it need not be the one that grew."
}

func (c *Case) probeNext(cause Cause) string {
	p, field := c.Liveness, "livenessProbe"
	if cause == Startup {
		p, field = c.Startup, "startupProbe"
	}
	if full := c.fullest(); full != nil && full.Fill() >= fullFrom {
		return fmt.Sprintf("Volume %s is %.0f %% full: see whether the application hangs on it before the %s is blamed.", full.Name, 100*full.Fill(), field)
	}
	if p != nil && c.ran() > 0 && c.ran() <= earlyWithin*(p.earliest()+c.graceTaken(p)+p.Period) {
		return fmt.Sprintf("The %s may stop the container %s after its start and it ran %s: give it longer to start (a startupProbe, or initialDelaySeconds), and raise its timeout.", field, p.earliest(), c.ran().Round(time.Second))
	}
	return fmt.Sprintf("See why the %s went without an answer: a hang, throttled CPU, or a timeout that is too short for a busy moment.", field)
}

// graceTaken is how long the stop took where the container sat its grace period out.
func (c *Case) graceTaken(p *Probe) time.Duration {
	if c.Code == codeKill {
		return c.grace(p)
	}
	return 0
}

func (c *Case) unknownNext() string {
	switch {
	case c.Code == codeKill && c.Blind != "":
		return "Look for an OOM kill in the node's kernel log (dmesg), then for whoever may have sent SIGKILL."
	case c.Code == codeKill && c.NoEvents != "":
		return "Look at the pod's Events for a failed probe (kubectl describe pod), then on the node for whoever may have sent SIGKILL."
	case c.Code == codeKill:
		return "Look on the node for who sends SIGKILL: a user-space OOM daemon (systemd-oomd, earlyoom), an operator, a restart of the runtime, or the container itself."
	}
	return "Look in the container's previous log and on the node for who sent the signal: a supervisor in the container, an operator, or a restart of the runtime."
}
