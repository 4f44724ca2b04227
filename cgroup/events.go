package cgroup

// Events are counters since the cgroup was made. A counter that the kernel does not offer is Absent.
type Events struct {
	Low          Amount // v2: reclaimed although under memory.low
	High         Amount // v2: throttled because over memory.high
	Max          Amount // v2: about to go over memory.max
	OOM          Amount // v2: the limit was reached and an allocation was about to fail
	OOMKill      Amount // processes killed by any OOM killer
	OOMGroupKill Amount // v2 from kernel 5.17: the whole cgroup was killed at once

	Failcnt  Amount // v1: times the usage hit the limit
	UnderOOM Amount // v1: 1 while the cgroup is out of memory and its tasks wait, else 0
}

func (e *Events) clear() {
	*e = Events{Low: Absent, High: Absent, Max: Absent, OOM: Absent, OOMKill: Absent, OOMGroupKill: Absent, Failcnt: Absent, UnderOOM: Absent}
}

// Events reads memory.events (v2), which counts the descendants too, or memory.oom_control and memory.failcnt (v1),
// which count this cgroup only. It is an UnsupportedError at the v2 root. On an error all of e is Absent. It does not
// allocate once the files are open.
func (g *Group) Events(e *Events) error {
	e.clear()
	err := g.enter(v2Events)
	if err != nil {
		return err
	}
	defer g.leave()
	if g.tree.at.version == 1 {
		err = g.eventsV1(e)
	} else {
		err = g.eventsV2(e)
	}
	if err != nil {
		e.clear()
	}
	return err
}

func (g *Group) eventsV2(e *Events) error {
	data, found, err := g.readLater(laterEvents, dirMemory, v2Events)
	if err != nil {
		return err
	}
	if !found {
		return &UnsupportedError{Feature: v2Events + " of " + g.path, Needs: "a cgroup below the root"}
	}
	if fault := parseEventsV2(data, e); fault != nil {
		return g.parseError(fault, v2Events)
	}
	return nil
}

func (g *Group) eventsV1(e *Events) error {
	data, found, err := g.readLater(laterEvents, dirMemory, v1OOM)
	if err != nil {
		return err
	}
	if !found {
		return &UnsupportedError{Feature: v1OOM + " of " + g.path, Needs: "the v1 memory controller"}
	}
	if fault := parseOOMControl(data, e); fault != nil {
		return g.parseError(fault, v1OOM)
	}
	data, found, err = g.readLater(laterFailcnt, dirMemory, v1Failcnt)
	if err != nil || !found {
		return err
	}
	e.Failcnt, err = g.amount(data, v1Failcnt)
	return err
}

// parseEventsV2 parses memory.events and memory.events.local.
func parseEventsV2(data []byte, e *Events) *ParseError {
	if len(data) == 0 {
		return &ParseError{Err: errEmpty}
	}
	s := scanner{rest: data}
	for s.next() {
		switch string(s.key) {
		case "low":
			s.set(&e.Low)
		case "high":
			s.set(&e.High)
		case "max":
			s.set(&e.Max)
		case "oom":
			s.set(&e.OOM)
		case "oom_kill":
			s.set(&e.OOMKill)
		case "oom_group_kill":
			s.set(&e.OOMGroupKill)
		}
	}
	// These two are as old as the file; oom_kill came with kernel 4.13.
	s.need(e.Max, "max")
	s.need(e.OOM, "oom")
	return s.fault
}

// parseOOMControl parses memory.oom_control of v1; oom_kill came with kernel 4.13.
func parseOOMControl(data []byte, e *Events) *ParseError {
	if len(data) == 0 {
		return &ParseError{Err: errEmpty}
	}
	s := scanner{rest: data}
	for s.next() {
		switch string(s.key) {
		case "under_oom":
			s.set(&e.UnderOOM)
		case "oom_kill":
			s.set(&e.OOMKill)
		}
	}
	s.need(e.UnderOOM, "under_oom")
	return s.fault
}
