package score

import (
	"strings"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

// ByKubelet is the eviction of a pod by the kubelet. What it was for is told from the kubelet's message (nodeLowMessageFmt in
// pkg/kubelet/eviction/helpers.go).
func ByKubelet(pod, uid, message string, wall time.Time) Act {
	a := Act{By: "kubelet", Pod: pod, UID: uid, Wall: wall}
	if !strings.Contains(message, "low on resource: memory") {
		a.Other = "the kubelet evicted the pod for another reason than memory: " + message
	}
	return a
}

// ByKernel is an OOM kill; false: it was at a limit of the victim's own, and the readings of the pod show what it ended.
func ByKernel(k *status.OOMKill, wall time.Time) (Act, bool) {
	a := Act{By: "kernel", Pod: k.Who(), UID: k.PodUID, Wall: wall}
	switch k.Domain {
	case "node", "kubepods":
	case "", "unknown":
		a.Other = "the kernel killed in the pod, and it is not known whose memory had run out"
	default:
		return a, false
	}
	return a, true
}

// Lowest returns the smallest margin to a hard threshold in samples, its signal, and how many hard thresholds could be read in
// the newest.
func Lowest(samples []pressure.Sample, thresholds []pressure.Threshold) (margin int64, signal string, readable int) {
	least := pressure.Unknown
	for i := range samples {
		for _, t := range thresholds {
			if !t.Hard {
				continue
			}
			r := t.Read(&samples[i])
			if !r.Margin.Known() {
				continue
			}
			if i == len(samples)-1 {
				readable++
			}
			if !least.Known() || r.Margin < least {
				least, signal = r.Margin, string(r.Signal)
			}
		}
	}
	if !least.Known() {
		return 0, "", 0
	}
	return int64(least), signal, readable
}

// PodOf is what the API server lists of a pod, with its reading.
func PodOf(p *policy.Pod, r policy.Reading) Pod {
	switch {
	case p.Terminating:
		return Pod{Life: Deleted}
	case p.Finished:
		return Pod{Life: Ended}
	}
	return Pod{Life: Here, Fresh: r.Fresh, Held: r.WorkingSet - min(r.ActiveFile, r.WorkingSet), Cache: min(r.ActiveFile, r.WorkingSet)}
}

// Names reports whether a would-be eviction of that pod waits, or its end is still looked at.
func (s *Score) Names(uid string) bool {
	for _, e := range s.open {
		if e.UID == uid {
			return true
		}
	}
	return false
}

// Since is when the oldest of those was named, by the wall clock; zero: there is none.
func (s *Score) Since() time.Time {
	if len(s.open) == 0 {
		return time.Time{}
	}
	return s.open[0].At
}
