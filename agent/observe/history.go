package observe

import (
	"slices"
	"time"

	"spillway/agent/pressure"
	"spillway/agent/sampler"
)

// historyEvery is how often the histories are judged: they get a point a minute.
const historyEvery = time.Minute

// Histories says what the last 24 h of node and pods show. It is for one goroutine.
type Histories struct {
	samples *sampler.Sampler
	at      time.Duration
	node    pressure.Risk
	pods    map[string]pressure.Risk // by pod cgroup UID
	buffer  []sampler.HistoryPoint
	scratch []uint64
	points  []pressure.Point
	usual   map[string]uint64 // bytes, by pod cgroup UID: of those that were asked for since the last look
	peaks   []uint64
}

// NewHistories returns Histories that have not looked yet.
func NewHistories(samples *sampler.Sampler) *Histories { return &Histories{samples: samples} }

// Node is the risk of the node, as of the last look.
func (h *Histories) Node() pressure.Risk { return h.node }

// Pods are the risks of the pods as of the last look, by pod cgroup UID. Each look makes another map.
func (h *Histories) Pods() map[string]pressure.Risk { return h.pods }

// Look fits a line to the history of the node and of each pod. It takes some 25 µs for each, once a minute, and waits
// while the node is busy. capacity is the node's memory.
func (h *Histories) Look(capacity pressure.Bytes, busy bool) {
	now := h.samples.Now()
	if h.buffer == nil {
		h.buffer = make([]sampler.HistoryPoint, sampler.KeepHistory/time.Minute)
	} else if now-h.at < historyEvery || busy {
		return
	}
	h.at, h.pods, h.usual = now, map[string]pressure.Risk{}, map[string]uint64{}
	var got []sampler.HistoryPoint
	got, h.scratch = h.samples.History(h.buffer, h.scratch)
	h.node = h.risk(got, capacity)
	for _, s := range h.samples.Series() {
		if s.Gone() {
			continue
		}
		got, h.scratch = s.History(h.buffer, h.scratch)
		h.pods[s.Target.Key] = h.risk(got, capacity)
	}
}

// Usual returns what a pod usually takes, bytes: the median of what its working set reached in the minutes of up to 24 h. 0
// means that there is no history. uid is that of its cgroup.
func (h *Histories) Usual(uid string) uint64 {
	if use, ok := h.usual[uid]; ok || h.usual == nil {
		return use
	}
	for _, s := range h.samples.Series() {
		if s.Target.Key != uid {
			continue
		}
		var got []sampler.HistoryPoint
		got, h.scratch = s.History(h.buffer, h.scratch)
		h.usual[uid] = h.median(got)
	}
	return h.usual[uid]
}

func (h *Histories) median(history []sampler.HistoryPoint) uint64 {
	h.peaks = h.peaks[:0]
	for i := range history {
		if peak, ok := history[i].PeakWorkingSet.Bytes(); ok {
			h.peaks = append(h.peaks, peak)
		}
	}
	if len(h.peaks) == 0 {
		return 0
	}
	slices.Sort(h.peaks)
	return h.peaks[len(h.peaks)/2]
}

func (h *Histories) risk(history []sampler.HistoryPoint, capacity pressure.Bytes) pressure.Risk {
	h.points = h.points[:0]
	for _, p := range history {
		h.points = append(h.points, pressure.Point{At: p.At, Value: Bytes(p.HeldFloor)})
	}
	return pressure.RiskOf(h.points, capacity)
}
