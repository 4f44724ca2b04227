package oom

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/ebpf/oomkill"
	"spillway/test/oomnode"
)

// The tests of this file kill real processes in cgroups that look like those of pods, and read what is reported.

// TestKernelOOMKillDomains: whose memory had run out, with the kernel's word and without it.
func TestKernelOOMKillDomains(t *testing.T) {
	n := oomnode.New(t)
	for _, log := range []bool{true, false} {
		t.Run(map[bool]string{true: "with the log", false: "by counters"}[log], func(t *testing.T) {
			nt := n.In(t)
			w := start(nt, kernelLog(t, log))
			if log {
				w.needsLog()
			}
			hows := []string{"kernel-log"}
			switch {
			case !log && nt.V2():
				hows = []string{"memory.events"}
			case !log:
				hows = []string{"oom_control", "usage-at-limit"} // the listener may be scheduled after the tracer
			case log: // the kernel prints 10 causes in 5 s only
				hows = append(hows, "memory.events", "oom_control", "usage-at-limit")
			}
			for i, domain := range []string{"container", "pod", "kubepods"} {
				number := 10 + i
				if log {
					number = 20 + i
				}
				pod, container, uid, id := nt.Pod(number)
				limited := map[string]string{"container": container, "pod": pod, "kubepods": nt.Top}[domain]
				nt.Limit(limited)
				w.knows(i + 1)
				w.listens(container)
				pid := nt.Kill(container)
				k := w.next(domain, ofPID(pid))
				fields{"source": "bpf", "victims": 1, "podUid": uid, "containerId": id, "cgroup": container, "domain": domain, "domainCgroup": limited, "domainLimitBytes": oomnode.Limit}.check(t, k)
				if !slices.Contains(hows, k.DomainKnownBy) {
					t.Errorf("known by %q, want one of %v", k.DomainKnownBy, hows)
				}
				if l := k.LatencySeconds; l == nil || *l <= 0 || *l > 1 {
					t.Errorf("latency in %s", text(k))
				} else {
					t.Logf("%s by %s after %.3f ms", domain, k.DomainKnownBy, 1e3**l)
				}
				if k.AnonBytes == nil || k.PageTableBytes == nil || k.OOMScoreAdj == nil {
					t.Errorf("memory or adjustment of the victim is not in %s", text(k))
				}
				if domain == "kubepods" {
					nt.Unlimit(nt.Top)
				}
			}
		})
	}
}

// TestKernelOOMGroupKill: one record of all victims.
func TestKernelOOMGroupKill(t *testing.T) {
	n := oomnode.New(t)
	if !n.V2() {
		t.Skip("memory.oom.group is of cgroup v2")
	}
	w := start(n, nil)
	_, container, uid, _ := n.Pod(1)
	n.Limit(container)
	n.Write(container, "memory.oom.group", "1")
	const holders = 20
	var children []*oomnode.Process
	for range holders {
		c := n.Start(container, "hold:65536")
		c.Release(t)
		c.Expect(t, "holding")
		children = append(children, c)
	}
	last := n.Start(container, "alloc")
	children = append(children, last)
	last.Release(t)
	for _, c := range children {
		n.Died(c)
	}
	k := w.next("group kill", ofCgroup(container))
	fields{"source": "bpf", "victims": holders + 1, "group": container, "podUid": uid, "domain": "container"}.check(t, k)
	if len(k.Others) != holders {
		t.Errorf("%d other victims are named, want %d", len(k.Others), holders)
	}
	if s := w.Status(); s.Kills != holders+1 || s.Missed != 0 || len(w.snapshot().OOMKills) != 1 {
		t.Errorf("%+v", s)
	}
}

// TestKernelOOMGroupKillsCountedTwice: with memory.oom.group the kernel counts the first victim again, also where it is the only
// one. Each kill is one record, on each rung, in a pod as the kubelet makes it: with the limit of its one container, and a sandbox.
func TestKernelOOMGroupKillsCountedTwice(t *testing.T) {
	n := oomnode.New(t)
	files := map[bool]string{true: "memory.events", false: "memory.oom_control"}[n.V2()]
	number := 800
	for _, rung := range []string{"bpf", "kmsg", files} {
		for _, tc := range []struct {
			name    string
			group   bool
			holders int
		}{{"one process", true, 0}, {"three processes", true, 2}, {"no group", false, 2}} {
			if tc.group && !n.V2() {
				continue // memory.oom.group is of cgroup v2
			}
			number++
			t.Run(rung+" "+tc.name, func(t *testing.T) {
				nt := n.In(t)
				w := start(nt, func(o *Options) {
					if rung != "bpf" {
						o.BTF = filepath.Join(t.TempDir(), "no-btf")
					}
					kernelLog(t, rung != files)(o)
				})
				if rung == "kmsg" {
					w.needsLog()
				}
				pod, container, uid, id := nt.Pod(number)
				sandbox := pod + "/" + fmt.Sprintf("%032x%032x", os.Getpid(), 10_000+number)
				nt.Mkdir(sandbox)
				nt.Limit(container)
				nt.Limit(pod)
				victims := 1
				if tc.group {
					nt.Write(container, "memory.oom.group", "1")
					victims += tc.holders
				}
				pause := nt.Start(sandbox, "hold:65536")
				pause.Release(t)
				pause.Expect(t, "holding")
				w.knows(1)
				w.listens(container)
				before := n.Kills()
				for round := range 2 {
					var children []*oomnode.Process
					for range tc.holders {
						c := nt.Start(container, "hold:65536")
						c.Release(t)
						c.Expect(t, "holding")
						children = append(children, c)
					}
					last := nt.Start(container, "alloc")
					last.Release(t)
					nt.Died(last)
					for _, c := range children {
						if tc.group {
							nt.Died(c)
						} else if err := c.Process.Kill(); err != nil {
							t.Error(err)
						} else {
							_ = c.Wait()
						}
					}
					k := w.next(fmt.Sprintf("kill %d", round), ofPod(uid))
					want := fields{"source": rung, "containerId": id, "domain": "container", "group": ""}
					// Below BPF a process that the kernel meets with two threads counts as two: see Table.Twice.
					if got := k.Victims; got < victims || got > victims && (rung == "bpf" || !tc.group) {
						t.Errorf("%d victims, want %d", got, victims)
					}
					if tc.group {
						want["group"] = container
					}
					want.check(t, k)
				}
				t.Logf("2 kills of %d processes, counted %d times", victims, n.Kills()-before)
				<-time.After(4 * tickEvery)
				select {
				case k := <-w.kills:
					t.Errorf("one more record: %s", text(&k))
				default:
				}
				st, table := w.asked("the kills in status", func(st *status.Status) bool { return len(st.OOMKills) >= 2 })
				if s := st.OOMWatch; len(st.OOMKills) != 2 || s.Missed != 0 || s.Kills < uint64(2*victims) || rung == "bpf" && s.Kills > uint64(2*victims) {
					t.Errorf("%d records, %+v, want 2 of %d processes", len(st.OOMKills), s, victims)
				}
				if src := sourceIn(st); rung == "bpf" && src.State != status.OK {
					t.Errorf("source %+v", src)
				}
				if strings.Contains(table, "only counted") && !strings.Contains(table, " 0 only counted") {
					t.Errorf("status shows more kills:\n%s", table)
				}
			})
		}
	}
}

// TestKernelOOMKillOfAChild: not the container's first process; pod status never shows it.
func TestKernelOOMKillOfAChild(t *testing.T) {
	n := oomnode.New(t)
	w := start(n, nil)
	_, container, uid, id := n.Pod(2)
	n.Limit(container)
	c := n.Start(container, "parent")
	c.Release(t)
	line, err := c.Out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	fields{"podUid": uid, "containerId": id, "victims": 1, "domain": "container"}.check(t, w.next("child", ofPID(pid)))
	if err := c.Wait(); err != nil {
		t.Errorf("the first process: %v", err)
	}
}

// TestKernelOOMKillOfAShortContainer: the container comes, is killed and is gone at once, before any walk of the tree.
func TestKernelOOMKillOfAShortContainer(t *testing.T) {
	n := oomnode.New(t)
	w := start(n, nil)
	for i := range 10 {
		pod, container, uid, id := n.Pod(100 + i)
		n.Limit(container)
		pid := n.Kill(container)
		dead := time.Now()
		n.Remove(container)
		n.Remove(pod)
		if took := time.Since(dead); took > 50*time.Millisecond {
			t.Logf("removed after %v", took)
		}
		fields{"podUid": uid, "containerId": id, "source": "bpf"}.check(t, w.next("short container", ofPID(pid)))
	}
}

// TestKernelOOMBurst: 60 kills in under 5 s, each reported once and attributed.
func TestKernelOOMBurst(t *testing.T) {
	n := oomnode.New(t)
	w := start(n, nil)
	const groups, each = 4, 15
	want := map[int]string{}
	var children []*oomnode.Process
	var containers []string
	for g := range groups {
		_, container, uid, _ := n.Pod(200 + g)
		containers = append(containers, container)
		n.Limit(container)
		for range each {
			c := n.Start(container, "alloc")
			want[c.Process.Pid] = uid
			children = append(children, c)
		}
	}
	for _, path := range containers {
		w.listens(path)
	}
	start := time.Now()
	for _, c := range children {
		c.Release(t)
	}
	for _, c := range children {
		n.Died(c)
	}
	t.Logf("%d kills in %v", len(children), time.Since(start))
	var late []float64
	domains := map[string]int{}
	for left := len(want); left > 0; left-- {
		k := w.next("burst", func(k *status.OOMKill) bool { return want[int(k.PID)] != "" })
		fields{"podUid": want[int(k.PID)], "source": "bpf"}.check(t, k)
		domains[k.Domain+" by "+k.DomainKnownBy]++
		late = append(late, *k.LatencySeconds)
		delete(want, int(k.PID))
	}
	slices.Sort(late)
	t.Logf("60 of 60; latency p50 %.2f ms, p90 %.2f ms, max %.2f ms; %v", 1e3*late[30], 1e3*late[54], 1e3*late[59], domains)
	for d, count := range domains { // a v1 counter is read some time after the mark: on a busy machine one may be unknown
		if !strings.HasPrefix(d, "container ") && (!strings.HasPrefix(d, "unknown ") || n.V2() || count > 3) {
			t.Errorf("domains %v", domains)
			break
		}
	}
	<-time.After(3 * tickEvery) // the audit's verdict on the last window
	if s := w.Status(); s.Missed != 0 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

// TestKernelOOMKillsMissed: the Watch stands still, the buffer is full, and the counters show what it lost.
func TestKernelOOMKillsMissed(t *testing.T) {
	n := oomnode.New(t)
	if os.Getpagesize() > 4096 {
		t.Skipf("a page of %d bytes takes too many kills to fill", os.Getpagesize())
	}
	w := start(n, func(o *Options) { o.bufferBytes = os.Getpagesize() })
	_, container, uid, _ := n.Pod(300)
	n.Limit(container)
	w.knows(1)
	release := w.hold()
	const kills = 60
	for range kills {
		n.Kill(container)
	}
	release()
	reported, missed := 0, 0
	for reported+missed < kills {
		switch k := w.next("kill or missed kills", ofPod(uid)); k.Source {
		case "bpf":
			reported += k.Victims
		case "vmstat":
			missed += k.Victims
		default:
			t.Errorf("record %s", text(k))
		}
	}
	s := w.Status()
	t.Logf("%d reported, %d missed, %d lost in the buffer", reported, missed, s.Lost)
	if reported+missed != kills || uint64(missed) != s.Lost || s.Lost == 0 {
		t.Errorf("%d of %d reported, %d missed, %d lost", reported, kills, missed, s.Lost)
	}
	w.until("missed kills in status", func() bool { return w.Status().Missed == s.Lost })
	st, table := w.asked("lost events in status", func(st *status.Status) bool {
		src := sourceIn(st)
		return src.State == status.Degraded && strings.Contains(src.Detail, fmt.Sprintf("; %d events were lost; %d kills missed", s.Lost, s.Lost)) && st.OOMWatch.Lost == s.Lost
	})
	if row := fmt.Sprintf("\n%d reported one by one, %d only counted, %d events lost", st.OOMWatch.Kills, s.Lost, s.Lost); !strings.Contains(table, row) {
		t.Errorf("no line %q in\n%s", row, table)
	}
	if up, lost, missed := w.metric("spillway_source_up", "oom-tracer"), w.metric("spillway_oom_events_lost_total", ""), w.metric("spillway_oom_kills_missed_total", ""); up != 0 || lost != float64(s.Lost) || missed != float64(s.Lost) {
		t.Errorf("metrics: source up %v, %v lost, %v missed, want %d", up, lost, missed, s.Lost)
	}
	if len(w.logged.lines("ERROR oom kills missed: only counters of the kernel tell of them missed=")) == 0 {
		t.Error("the log does not show the missed kills")
	}
	w.shared.mu.Lock()
	w.shared.degradedFor = 0 // as if the time were over
	w.shared.mu.Unlock()
	w.asked("the loss is shown and the source works", func(st *status.Status) bool {
		src := sourceIn(st)
		return src.State == status.OK && strings.Contains(src.Detail, "events were lost")
	})
}

// TestKernelOOMLadder: each rung below BPF catches what it can, and says so.
func TestKernelOOMLadder(t *testing.T) {
	n := oomnode.New(t)
	files := "memory.oom_control"
	if n.V2() {
		files = "memory.events"
	}
	for i, tc := range []struct {
		name, rung string
		log        bool
		ends       bool // the tracer ends while the agent runs
	}{
		{"kernel log", "kmsg", true, false},
		{"files of the cgroups", files, false, false},
		{"the tracer ends", "kmsg", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nt := n.In(t)
			before := n.Kills()
			w := start(nt, func(o *Options) {
				if !tc.ends {
					o.BTF = filepath.Join(t.TempDir(), "no-btf")
				}
				kernelLog(t, tc.log)(o)
			})
			if tc.log {
				w.needsLog()
			}
			if tc.ends {
				w.shared.tracer.Load().Close()
			}
			_, container, uid, id := nt.Pod(400 + i)
			nt.Limit(container)
			w.knows(1)
			state := func() string {
				src := sourceIn(w.snapshot())
				return src.State + " " + src.Detail
			}
			w.until("the rung", func() bool { return strings.HasPrefix(state(), "degraded "+tc.rung) })
			if !strings.Contains(state(), "no bpf: ") {
				t.Errorf("state %q does not say why BPF is not used", state())
			}
			w.listens(container)
			const kills = 5
			var pids []int
			for range kills {
				pids = append(pids, nt.Kill(container))
			}
			for got := 0; got < kills; {
				k := w.next(tc.name, ofPod(uid))
				got += k.Victims
				fields{"source": tc.rung, "containerId": id, "domain": "container"}.check(t, k)
				if tc.rung == "kmsg" && !slices.Contains(pids, int(k.PID)) {
					t.Errorf("process %d, want one of %v", k.PID, pids)
				}
				if k.LatencySeconds != nil {
					t.Errorf("latency %v of a kill whose time is not known", *k.LatencySeconds)
				}
				if got > kills {
					t.Errorf("%d kills reported of %d", got, kills)
				}
			}
			<-time.After(4 * tickEvery)
			// The files of the cgroups tell of pods alone; other tests may kill on this machine meanwhile.
			s, others := w.Status(), uint64(0)
			if tc.rung == files {
				others = n.Kills() - before - kills
			}
			if s.Missed > others || s.Kills < kills {
				t.Errorf("%+v, %d kills by others", s, others)
			}
			select {
			case k := <-w.kills:
				if k.PodUID == uid {
					t.Errorf("one more record: %s", text(&k))
				}
			default:
			}
		})
	}
}

// TestKernelOOMKillOfAnUnknownCgroup: where the victim was is not known, and the record says so.
func TestKernelOOMKillOfAnUnknownCgroup(t *testing.T) {
	n := oomnode.New(t)
	w := start(n, nil)
	nowhere := uint64(1 << 60)
	uid, id := fmt.Sprintf("0b3c0c5e-8c4e-4a25-9f0e-%012d", 600), fmt.Sprintf("%064x", 600)
	for name, tc := range map[string]struct {
		ev   oomkill.Event
		want fields
	}{
		"no name either": {oomkill.Event{PID: 1 << 30}, fields{"cgroup": "", "podUid": "", "domain": "unknown", "domainWhy": "the victim's cgroup is not known", "limitOf": "unknown"}},
		"known by name":  {oomkill.Event{PID: 1<<30 + 1, CgroupName: "cri-containerd-" + id + ".scope", CgroupParent: "pod" + uid}, fields{"podUid": uid, "containerId": id}},
	} {
		ev := tc.ev
		nowhere++
		ev.KnownVictim, ev.Time, ev.CgroupV1, ev.CgroupV2 = true, w.clock(), nowhere, nowhere
		w.ladder.events <- &ev
		tc.want.check(t, w.next(name, ofPID(int(ev.PID))))
	}
}

// TestKernelOOMKillInACgroupThatIsGone: a victim outside the pods, whose cgroup was not seen before it was removed.
func TestKernelOOMKillInACgroupThatIsGone(t *testing.T) {
	n := oomnode.New(t)
	w := start(n, kernelLog(t, false)) // its line would name it
	_, container, _, _ := n.Pod(601)
	n.Limit(container)
	w.knows(1)
	release := w.hold()
	n.Kill(container) // at whose report the Watch is held up
	other := filepath.Dir(n.Top) + "/other"
	n.Mkdir(other)
	n.Limit(other)
	pid := n.Kill(other)
	n.Remove(other)
	release()
	k := w.next("victim of nowhere", ofPID(pid))
	fields{"source": "bpf", "cgroup": "", "podUid": "", "pod": "", "domain": "unknown", "domainWhy": "the victim's cgroup is not known", "limitOf": "unknown"}.check(t, k)
	if k.CgroupID == 0 {
		t.Error("the id of the cgroup is not reported")
	}
	st, table := w.asked("the kill", func(st *status.Status) bool {
		return slices.ContainsFunc(st.OOMKills, func(k status.OOMKill) bool { return int(k.PID) == pid })
	})
	if !strings.Contains(table, strconv.Itoa(pid)) || !strings.Contains(table, "unknown") {
		t.Errorf("process %d of an unknown cgroup is not in\n%s", pid, table)
	}
	if src := sourceIn(st); src.State != status.OK {
		t.Errorf("source %+v", src) // the tracer works all the same
	}
	if got := w.metric("spillway_oom_events_total", "unknown"); got < 1 {
		t.Errorf("%v events of unknown domain in metrics", got)
	}
}

// TestKernelOOMOfTheNode: no limit is hit, the machine itself has no memory left.
func TestKernelOOMOfTheNode(t *testing.T) {
	if os.Getenv(oomnode.SpareEnv) == "" {
		t.Skip("needs a machine that may run out of memory: run make kernels")
	}
	n := oomnode.New(t)
	for _, log := range []bool{true, false} {
		t.Run(map[bool]string{true: "with the log", false: "by counters"}[log], func(t *testing.T) {
			nt := n.In(t)
			w := start(nt, kernelLog(t, log))
			number := map[bool]int{true: 500, false: 501}[log]
			_, container, uid, _ := nt.Pod(number)
			if !log { // a limit that is far away must not be blamed
				limit := map[bool]string{true: "memory.max", false: "memory.limit_in_bytes"}[nt.V2()]
				nt.Write(container, limit, strconv.Itoa(1<<40))
			}
			w.knows(1)
			c := nt.Start(container, "hold:"+strconv.Itoa(1<<40))
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.Process.Pid), []byte("1000"), 0); err != nil {
				t.Fatal(err)
			}
			c.Release(t)
			nt.Died(c)
			k := w.next("node", ofPID(c.Process.Pid))
			fields{"source": "bpf", "podUid": uid, "domain": "node", "domainCgroup": ""}.check(t, k)
			t.Logf("node by %s", k.DomainKnownBy)
			hows := []string{"kernel-log"}
			if !log {
				hows = []string{"no-limit-was-hit"}
			}
			if !slices.Contains(hows, k.DomainKnownBy) {
				t.Errorf("known by %q, want one of %v", k.DomainKnownBy, hows)
			}
		})
	}
}
