package agent

import (
	"slices"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/agent/status"
)

// riskEvery is how often the histories are judged: they get a point a minute.
const riskEvery = time.Minute

// risks are what the histories say; they belong to the loop.
type risks struct {
	at     time.Duration
	node   *status.Risk
	pods   map[string]*status.Risk // by pod cgroup UID
	buffer []sampler.HistoryPoint
	points []pressure.Point
	usual  map[string]uint64 // bytes, by pod cgroup UID: of those that were asked for since the last look
	peaks  []uint64
}

// judgeHistory fits a line to the history of the node and of each pod. It takes some 25 µs for each, once a minute, and
// waits while the node is under pressure.
func (l *loop) judgeHistory() {
	r, now := &l.risks, l.a.samples.Now()
	if r.buffer == nil {
		r.buffer = make([]sampler.HistoryPoint, sampler.KeepHistory/time.Minute)
	} else if now-r.at < riskEvery || l.verdict.Now >= pressure.Evict {
		return
	}
	r.at, r.pods, r.usual = now, map[string]*status.Risk{}, map[string]uint64{}
	capacity := l.capacity()
	var got []sampler.HistoryPoint
	got, l.scratch = l.a.samples.History(r.buffer, l.scratch)
	r.node = r.judge(got, capacity)
	for _, s := range l.a.samples.Series() {
		if s.Gone() {
			continue
		}
		got, l.scratch = s.History(r.buffer, l.scratch)
		r.pods[s.Target.Key] = r.judge(got, capacity)
	}
}

// usual returns what a pod usually takes, bytes: the median of what its working set reached in the minutes of up to 24 h. 0
// means that there is no history.
func (l *loop) usual(p *policy.Pod) uint64 {
	r, uid := &l.risks, l.cgroupUID(p)
	if use, ok := r.usual[uid]; ok || r.usual == nil {
		return use
	}
	for _, s := range l.a.samples.Series() {
		if s.Target.Key != uid {
			continue
		}
		var got []sampler.HistoryPoint
		got, l.scratch = s.History(r.buffer, l.scratch)
		r.usual[uid] = r.median(got)
	}
	return r.usual[uid]
}

func (r *risks) median(history []sampler.HistoryPoint) uint64 {
	r.peaks = r.peaks[:0]
	for i := range history {
		if peak, ok := history[i].PeakWorkingSet.Bytes(); ok {
			r.peaks = append(r.peaks, peak)
		}
	}
	if len(r.peaks) == 0 {
		return 0
	}
	slices.Sort(r.peaks)
	return r.peaks[len(r.peaks)/2]
}

func (r *risks) judge(history []sampler.HistoryPoint, capacity pressure.Bytes) *status.Risk {
	r.points = r.points[:0]
	for _, p := range history {
		r.points = append(r.points, pressure.Point{At: p.At, Value: amount(p.HeldFloor)})
	}
	risk := pressure.RiskOf(r.points, capacity)
	if !risk.Known {
		return nil
	}
	return &status.Risk{High: risk.High, PercentPerHour: risk.PercentPerHr, R2: risk.R2, SpanSeconds: risk.Span.Seconds()}
}
