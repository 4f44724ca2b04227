package metrics

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"spillway/agent/status"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spillway_"+name, help, labels, nil)
}

var (
	descLevel      = desc("level", "1 for the level that the node is at, 0 for the others: unknown, calm, alert, evict, critical.", "level")
	descUsed       = desc("node_used_ratio", "1 - smallest hard margin / allocatable.")
	descMargin     = desc("node_margin_bytes", "Available memory above the threshold.", "signal", "kind")
	descAvailable  = desc("node_available_bytes", "Available memory by the signal's own formula.", "signal", "kind")
	descThreshold  = desc("node_threshold_bytes", "The threshold.", "signal", "kind")
	descSlope      = desc("node_slope_bytes_per_second", "How fast the smallest hard margin shrinks; 0 when it does not.")
	descCacheSlope = desc("node_cache_slope_bytes_per_second", "The part of the slope that is active page cache.")
	descETA        = desc("node_eta_seconds", "Time until the smallest hard margin is 0; absent when it is not in sight.")
	descLead       = desc("lead_time_seconds", "How long the eviction of the first candidate is assumed to take.")
	descCall       = desc("eviction_call_seconds", "How long an eviction is taken to last until its pod is terminating, with a reserve.")
	descCut        = desc("eviction_cut_seconds", "How long a pod whose grace period is cut short is taken to last until its last process is gone.")
	descBack       = desc("release_bytes_per_second", "How fast the memory of a pod that ends is taken to come back.")
	descMeasures   = desc("lead_time_measures", "Measures on this node that each part of the lead times rests on; below 3 the usual value counts.", "part")
	descStall      = desc("node_memory_stall_ratio", "Part of the newest window in which tasks waited for memory, from the totals of /proc/pressure/memory.", "kind", "window")
	descExplained  = desc("node_memory_stall_explained_ratio", "Part of the node's full stall that containers at their own limits explain.")
	descGrowth     = desc("node_growth_bytes_per_second", "Growth of the node's memory over the last 10 s, without page cache.")
	descPartGrowth = desc("node_part_growth_bytes_per_second", "The same by where it is: pods, system-slices, kernel, unexplained. The parts add up to the node's.", "part")
	descNodeRisk   = desc("node_oom_risk", "1 when a day's history says that memory that cannot be reclaimed rises towards a shortage; absent without half an hour of it.")
	descPodRisk    = desc("pod_oom_risk", "1 when the pod's history says that its memory rises without end; absent without half an hour of it.", "namespace", "pod")
	descPace       = desc("sampling_interval_seconds", "Present time between two samples of the node.")
	descWorst      = desc("sampling_worst_fill_bytes_per_second", "The fastest filling of the node that the pace reckons with.")
	descWakes      = desc("sampling_wakes_total", "How often triggers or the level made sampling fast.")
	descPassed     = desc("sampling_wakes_passed_total", "Triggers that were not followed, as those before led to nothing.")
	descRings      = desc("sampling_ring_bytes", "Memory of all rings.")
	descWalks      = desc("map_walks_total", "Walks of the cgroup tree.")
	descWalkTime   = desc("map_walk_seconds_total", "Time spent in walks of the cgroup tree.")
	descSource     = desc("source_up", "1 when a source works, 0 when the agent does without it; sources that are off are absent.", "source")
	descCheck      = desc("preflight_state", "1 for the state of each prerequisite at the start, or when it was last checked, 0 for the others: ok, degraded, failed, off.", "check", "state")
	descRung       = desc("oom_rung", "How OOM kills are seen: 1 for the source that reports them, 0 for those that help or stand by; what is missing is absent.", "rung")
	descOOMLost    = desc("oom_events_lost_total", "OOM events for which the buffer in the kernel had no room.")
	descSweeps     = desc("sweeps_total", "Sampling sweeps.")
	descErrors     = desc("read_errors_total", "Readings of existing kernel files that failed.")
	descPasses     = desc("loop_passes_total", "Passes of the decision loop.")
	descLastPass   = desc("loop_last_pass_timestamp_seconds", "When the decision loop finished its newest pass.")
	descMode       = desc("mode", "1 for the mode that the agent runs in, 0 for the other: observe, enforce.", "mode")
	descForbidden  = desc("eviction_forbidden", "1 while no eviction may start.")
	descPaused     = desc("paused", "1 while the pause switch stops all evictions.")
	descLastHour   = desc("evictions_last_hour", "Evictions accepted within the last hour.")
	descHourlyCap  = desc("evictions_hourly_cap", "The most that may be accepted within an hour.")
	descShare      = desc("evictions_share", "Evictions within a window that count against a share of the node's pods, by class: all, or relief (pods without a real part in the growth).", "class", "window")
	descShareMost  = desc("evictions_share_limit", "The most that the share of the node's pods allows within the window. A pod that causes growth is evicted beyond it, up to the hourly cap.", "class", "window")
	descBraked     = desc("braked_pods", "Pods whose memory.high the agent has lowered while their eviction runs.")
	descMissing    = desc("replacements_not_running", "Evictions of the last 24 h whose replacement is known not to run.")
	descReturned   = desc("replacements_returned_total", "Evictions whose replacement came back to this node.")
	descExitsLost  = desc("container_exits_lost_total", "Ended containers that were not looked at, as too many ended at once.")
	descPodWS      = desc("pod_working_set_bytes", "Working set of a pod's cgroup, by the kubelet's formula.", "namespace", "pod")
	descPodGrowth  = desc("pod_growth_bytes_per_second", "Growth of a pod without page cache.", "namespace", "pod")
	descPodScore   = desc("pod_score", "Eviction score, 0 to 100; absent without a fresh reading.", "namespace", "pod")
	descPodRank    = desc("pod_rank", "Place in the eviction ranking, 1 is evicted first; 0: protected.", "namespace", "pod")
	descPeriods    = desc("pod_cpu_periods_total", "Periods of 0.1 s, or as the quota says, in which containers with a CPU limit wanted to run.", "namespace", "pod")
	descThrottled  = desc("pod_cpu_throttled_periods_total", "Periods in which containers were stopped by their CPU limit.", "namespace", "pod")
	descThrottledS = desc("pod_cpu_throttled_seconds_total", "How long containers were stopped by their CPU limit, summed over CPUs.", "namespace", "pod")
	descWaiting    = desc("pod_pressure_waiting_seconds_total", "Time in which at least one task of the pod waited for the resource (PSI some; cgroup v2).", "namespace", "pod", "resource")
	descStalled    = desc("pod_pressure_stalled_seconds_total", "Time in which all tasks of the pod waited for the resource (PSI full; cgroup v2).", "namespace", "pod", "resource")
	descLedger     = desc("ledger_size_bytes", "Size of the file that holds what survives a restart.")
	descUnwritten  = desc("ledger_write_errors_total", "Writes to the ledger that failed.")
	descDropped    = desc("ledger_records_dropped_total", "Records that the ledger did not keep, as the disk did not keep up.")
	descNoJournal  = desc("journal_records_dropped_total", "Log records that journald did not take.")
	descNoEvent    = desc("kubernetes_events_dropped_total", "Kubernetes Events that were never stored.")
	descNoKmsg     = desc("kernel_log_records_lost_total", "Records of the kernel's log that were overwritten or dropped before they were looked at.")
	descRuntime    = desc("runtime_latency_seconds", "How long the container runtime took for its newest list; after a hang the time-out.")
	descHung       = desc("runtime_hung", "1 while the container runtime does not answer in time: no pod is evicted.")
	descHangs      = desc("runtime_hangs_total", "Calls to the container runtime that reached their time-out.")
	descContact    = desc("runtime_last_contact_timestamp_seconds", "When the container runtime last answered a list.")
	descNoLimit    = desc("containers_without_limit", "Containers on this node without a memory limit.")
)

// snapshot collects from the newest Status; it keeps nothing between two scrapes.
type snapshot struct {
	get  func() *status.Status
	pods int // that have series of their own
}

var _ prometheus.Collector = (*snapshot)(nil)

// Describe sends the descriptors of every metric.
func (c *snapshot) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descLevel, descUsed, descMargin, descAvailable, descThreshold, descSlope, descCacheSlope, descETA, descLead, descCall, descCut, descBack, descMeasures, descStall,
		descExplained, descGrowth, descPartGrowth, descNodeRisk, descPodRisk, descPace, descWorst, descWakes, descPassed, descRings, descWalks, descWalkTime,
		descSource, descSweeps, descErrors, descPasses, descLastPass, descMode, descPaused, descForbidden,
		descLastHour, descHourlyCap, descShare, descShareMost, descBraked, descMissing, descReturned, descExitsLost, descPodWS, descPodGrowth, descPodScore, descPodRank, descNoLimit,
		descLedger, descUnwritten, descDropped, descCheck, descRuntime, descHung, descHangs, descContact, descPeriods, descThrottled, descThrottledS, descWaiting, descStalled, descNoJournal, descNoEvent, descNoKmsg, descRung, descOOMLost,
	} {
		ch <- d
	}
}

// Collect renders the newest snapshot; figures that are unknown are left out.
func (c *snapshot) Collect(ch chan<- prometheus.Metric) {
	s := c.get()
	if s == nil {
		return
	}
	// A pod that was created again under its name may be here beside the old one; one scrape must not repeat a series.
	sent := map[string]bool{}
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		for i, l := range labels {
			labels[i] = strings.ToValidUTF8(l, "\uFFFD")
		}
		key := d.String() + "\x00" + strings.Join(labels, "\x00")
		if sent[key] {
			return
		}
		sent[key] = true
		if m, err := prometheus.NewConstMetric(d, t, v, labels...); err == nil {
			ch <- m
		} else {
			ch <- prometheus.NewInvalidMetric(d, err)
		}
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) { send(d, prometheus.GaugeValue, v, labels...) }
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		send(d, prometheus.CounterValue, v, labels...)
	}

	p := &s.Pressure
	for _, l := range []string{"unknown", "calm", "alert", "evict", "critical"} {
		gauge(descLevel, truth(l == p.Level), l)
	}
	if p.UsedPercent != nil {
		gauge(descUsed, *p.UsedPercent/100)
	}
	for _, t := range p.Thresholds {
		kind := "soft"
		if t.Hard {
			kind = "hard"
		}
		for d, v := range map[*prometheus.Desc]*int64{descMargin: t.MarginBytes, descAvailable: t.AvailableBytes, descThreshold: t.LimitBytes} {
			if v != nil {
				gauge(d, float64(*v), t.Signal, kind)
			}
		}
	}
	gauge(descSlope, p.SlopeBytes)
	gauge(descCacheSlope, p.CacheSlope)
	gauge(descLead, p.LeadSeconds)
	if t := s.Evictions.Timing; t != nil {
		gauge(descCall, t.CallSeconds)
		gauge(descCut, t.CutSeconds)
		gauge(descBack, t.BackBytes)
		gauge(descMeasures, float64(t.Calls), "call")
		gauge(descMeasures, float64(t.Cuts), "cut")
		gauge(descMeasures, float64(t.Releases), "release")
	}
	if p.ETASeconds != nil {
		gauge(descETA, *p.ETASeconds)
	}
	for _, st := range p.Stalls {
		gauge(descStall, st.Ratio, st.Kind, time.Duration(st.WindowSeconds*float64(time.Second)).String())
	}
	if p.Explained != nil {
		gauge(descExplained, *p.Explained)
	}
	if p.Risk != nil {
		gauge(descNodeRisk, truth(p.Risk.High))
	}
	for _, g := range p.Growth {
		switch {
		case g.BytesPerSecond == nil:
		case g.Part == "node":
			gauge(descGrowth, *g.BytesPerSecond)
		default:
			gauge(descPartGrowth, *g.BytesPerSecond, g.Part)
		}
	}
	for _, src := range s.Sources {
		if src.State != status.Off {
			gauge(descSource, truth(src.State == status.OK), src.Name)
		}
	}
	for _, r := range s.OOMWatch.Rungs {
		if r.State != "missing" {
			gauge(descRung, truth(r.State == "active"), r.Name)
		}
	}
	count(descOOMLost, float64(s.OOMWatch.Lost))
	count(descSweeps, float64(s.Loop.Sweeps))
	gauge(descPace, s.Loop.IntervalSeconds)
	gauge(descWorst, s.Loop.WorstFillRate)
	count(descWakes, float64(s.Loop.Wakes))
	count(descPassed, float64(s.Loop.WakesPassed))
	gauge(descRings, float64(s.Loop.RingBytes))
	count(descWalks, float64(s.Loop.MapWalks))
	count(descWalkTime, s.Loop.MapWalkSeconds)
	count(descErrors, float64(s.Loop.ReadErrors))
	count(descPasses, float64(s.Loop.Passes))
	gauge(descLastPass, float64(s.Loop.LastPass.UnixNano())/1e9)
	if l := s.Ledger; l != nil {
		gauge(descLedger, float64(l.SizeBytes))
		count(descUnwritten, float64(l.WriteErrors))
		count(descDropped, float64(l.Dropped))
	}
	if u := s.Undelivered; u != nil {
		count(descNoJournal, float64(u.JournalRecords))
		count(descNoEvent, float64(u.KubernetesEvents))
		count(descNoKmsg, float64(u.KernelLogRecords))
	}
	for _, c := range s.Preflight {
		for _, state := range []string{status.OK, status.Degraded, status.Failed, status.Off} {
			gauge(descCheck, truth(c.State == state), c.Name, state)
		}
	}
	if r := s.Runtime; r != nil {
		gauge(descHung, truth(r.Hung))
		count(descHangs, float64(r.Hangs))
		if r.LatencySeconds > 0 {
			gauge(descRuntime, r.LatencySeconds)
		}
		if !r.LastContact.IsZero() {
			gauge(descContact, float64(r.LastContact.UnixNano())/1e9)
		}
	}
	for _, mode := range []string{"observe", "enforce"} {
		gauge(descMode, truth(mode == s.Mode), mode)
	}
	gauge(descPaused, truth(s.Evictions.Paused))
	gauge(descForbidden, truth(s.Evictions.Forbidden != ""))
	gauge(descLastHour, float64(s.Evictions.LastHour))
	gauge(descHourlyCap, float64(s.Evictions.HourlyCap))
	for _, share := range s.Evictions.Shares {
		window := strconv.FormatFloat(share.WindowHours, 'g', -1, 64) + "h"
		gauge(descShare, float64(share.Count), share.Class, window)
		gauge(descShareMost, float64(share.Most), share.Class, window)
	}
	braked := 0
	for i := range s.Brakes {
		if s.Brakes[i].EndedAt == nil {
			braked++
		}
	}
	gauge(descBraked, float64(braked))
	missing := 0
	for i := range s.Evictions.Replacements {
		if s.Evictions.Replacements[i].Waits {
			missing++
		}
	}
	gauge(descMissing, float64(missing))
	count(descReturned, float64(s.Evictions.Returned))
	count(descExitsLost, float64(s.ExitsLost))
	noLimit := 0
	for i := range s.Pods {
		for _, k := range s.Pods[i].Containers {
			if k.LimitBytes == nil && k.Name != "(sandbox)" {
				noLimit++
			}
		}
	}
	gauge(descNoLimit, float64(noLimit))
	for _, pod := range largest(s.Pods, c.pods) {
		if pod.WorkingSetBytes != nil {
			gauge(descPodWS, float64(*pod.WorkingSetBytes), pod.Namespace, pod.Name)
		}
		if pod.GrowthBytes != nil {
			gauge(descPodGrowth, *pod.GrowthBytes, pod.Namespace, pod.Name)
		}
		if pod.Score != nil {
			gauge(descPodScore, *pod.Score, pod.Namespace, pod.Name)
		}
		if pod.Risk != nil {
			gauge(descPodRisk, truth(pod.Risk.High), pod.Namespace, pod.Name)
		}
		gauge(descPodRank, float64(pod.Rank), pod.Namespace, pod.Name)
		if w := pod.Waits; w != nil {
			count(descPeriods, float64(w.CPUPeriods), pod.Namespace, pod.Name)
			count(descThrottled, float64(w.CPUThrottledPeriods), pod.Namespace, pod.Name)
			count(descThrottledS, w.CPUThrottledSeconds, pod.Namespace, pod.Name)
			for _, p := range w.Pressure {
				count(descWaiting, p.SomeSeconds, pod.Namespace, pod.Name, p.Resource)
				count(descStalled, p.FullSeconds, pod.Namespace, pod.Name, p.Resource)
			}
		}
	}
}

// largest returns at most n pods, those with the largest working set first; a pod without a reading comes last.
func largest(all []status.Pod, n int) []*status.Pod {
	out := make([]*status.Pod, len(all))
	for i := range all {
		out[i] = &all[i]
	}
	size := func(p *status.Pod) uint64 {
		if p.WorkingSetBytes == nil {
			return 0
		}
		return *p.WorkingSetBytes
	}
	slices.SortStableFunc(out, func(a, b *status.Pod) int { return cmp.Compare(size(b), size(a)) })
	return out[:min(n, len(out))]
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
