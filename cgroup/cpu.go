package cgroup

// CPU is the CPU time of a cgroup and what its quota (the CPU limit of a container) took from it. A field that is not
// offered is Absent.
type CPU struct {
	Usage         Amount // CPU time, in µs
	Periods       Amount // quota periods in which the cgroup wanted to run, a count
	Throttled     Amount // periods in which it was stopped, a count
	ThrottledTime Amount // how long all its tasks were stopped, in µs; summed over CPUs
}

func (c *CPU) clear() {
	*c = CPU{Usage: Absent, Periods: Absent, Throttled: Absent, ThrottledTime: Absent}
}

// CPU reads cpu.stat of the same path: v2 in the cgroup itself, where the three quota fields need the cpu controller; v1
// in the cpu and cpuacct hierarchies. It is an UnsupportedError when the cgroup is in none of them. On an error all of
// c is Absent. It does not allocate once the files are open.
func (g *Group) CPU(c *CPU) error {
	c.clear()
	if err := g.enter("cpu.stat"); err != nil {
		return err
	}
	defer g.leave()
	err := g.cpu(c)
	if err != nil {
		c.clear()
	}
	return err
}

func (g *Group) cpu(c *CPU) error {
	if g.tree.at.version == 2 {
		data, found, err := g.readLater(laterCPUStat, dirMemory, "cpu.stat")
		if err != nil {
			return err
		}
		if !found {
			return &UnsupportedError{Feature: "cpu.stat of " + g.path, Needs: "kernel 4.15"}
		}
		if fault := parseCPUStatV2(data, c); fault != nil {
			return g.parseError(fault, "cpu.stat")
		}
		return nil
	}
	data, hasStat, err := g.readLater(laterCPUStat, dirCPU, "cpu.stat")
	if err != nil {
		return err
	}
	if hasStat {
		if fault := parseCPUStatV1(data, c); fault != nil {
			return g.parseError(fault, "cpu.stat")
		}
	}
	data, hasUsage, err := g.readLater(laterCPUAcct, dirCPUAcct, "cpuacct.usage")
	if err != nil {
		return err
	}
	if hasUsage {
		ns, fault := parseAmount(data, Unlimited)
		if fault != nil {
			return g.parseError(fault, "cpuacct.usage")
		}
		c.Usage = ns.micro()
	}
	if !hasStat && !hasUsage {
		return &UnsupportedError{Feature: "cpu.stat of " + g.path, Needs: "the same cgroup in the cpu or cpuacct hierarchy"}
	}
	return nil
}

// micro turns nanoseconds into microseconds.
func (a Amount) micro() Amount {
	if a >= Absent {
		return Absent
	}
	return a / 1000
}

// parseCPUStatV2 parses cpu.stat of v2 (cgroup-v2.rst, "CPU Interface Files").
func parseCPUStatV2(data []byte, c *CPU) *ParseError {
	if len(data) == 0 {
		return &ParseError{Err: errEmpty}
	}
	s := scanner{rest: data}
	for s.next() {
		switch string(s.key) {
		case "usage_usec":
			s.set(&c.Usage)
		case "nr_periods":
			s.set(&c.Periods)
		case "nr_throttled":
			s.set(&c.Throttled)
		case "throttled_usec":
			s.set(&c.ThrottledTime)
		}
	}
	s.need(c.Usage, "usage_usec")
	return s.fault
}

// parseCPUStatV1 parses cpu.stat of v1, whose throttled_time is in nanoseconds.
func parseCPUStatV1(data []byte, c *CPU) *ParseError {
	if len(data) == 0 {
		return &ParseError{Err: errEmpty}
	}
	s := scanner{rest: data}
	for s.next() {
		switch string(s.key) {
		case "nr_periods":
			s.set(&c.Periods)
		case "nr_throttled":
			s.set(&c.Throttled)
		case "throttled_time":
			s.set(&c.ThrottledTime)
		}
	}
	s.need(c.Throttled, "nr_throttled")
	c.ThrottledTime = c.ThrottledTime.micro()
	return s.fault
}
