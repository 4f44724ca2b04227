package agent

import (
	"spillway/agent/oom"
	"spillway/agent/status"
)

// openOOM opens what reports OOM kills. A kernel that refuses the tracer is no reason to stop.
func (a *Agent) openOOM() (err error) {
	a.oom, err = oom.Open(oom.Options{
		Tree: a.tree, Mapper: a.mapper, Clock: a.samples.Now, Report: a.report, Missed: a.metrics.OOMMissed,
		State:      func(state, detail string) { a.sources.set("oom-tracer", state, detail) },
		NamesLater: !a.standalone, BTF: a.opts.BTF, Kmsg: a.opts.Kmsg, Logger: a.log,
	})
	return err
}

// report counts a kill, logs it and hands it to the ledger and the loop. Every kill comes here, once, whichever rung reported it.
func (a *Agent) report(k status.OOMKill) {
	a.metrics.OOMKill(&k)
	a.log.Warn("oom kill", messageKill, "source", k.Source, "victims", k.Victims, "namespace", k.Namespace, "pod", k.Pod, "pod_uid", k.PodUID, "container", k.Container, "container_id", k.ContainerID,
		"cgroup", k.Cgroup, "process", k.Process, "pid", k.PID, "uid", k.UID, "anon_bytes", optional(k.AnonBytes), "file_bytes", optional(k.FileBytes), "shmem_bytes", optional(k.ShmemBytes),
		"page_table_bytes", optional(k.PageTableBytes), "oom_score_adj", optional(k.OOMScoreAdj), "limit_bytes", optional(k.LimitBytes), "limit_of", k.LimitOf,
		"domain", k.Domain, "domain_cgroup", k.DomainCgroup, "domain_limit_bytes", optional(k.DomainLimitBytes), "domain_known_by", k.DomainKnownBy, "domain_why", k.DomainWhy,
		"group", k.Group, "trigger_process", k.TriggerProcess, "trigger_pid", k.TriggerPID, "latency_seconds", optional(k.LatencySeconds))
	a.keepKill(&k)
	a.killEvent(&k)
	select {
	case a.kills <- k:
	default: // it is in the log and counted; only status misses it
	}
}
