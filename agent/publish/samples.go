package publish

import (
	"fmt"
	"time"

	"spillway/agent/podmap"
	"spillway/agent/sampler"
	"spillway/agent/status"
)

// Samples reads what was asked for from the rings. Any goroutine may.
func Samples(s *sampler.Sampler, m *podmap.Map, q status.SampleQuery) (status.Samples, error) {
	out := status.Samples{At: time.Now(), BootSeconds: s.Now().Seconds()}
	if q.Pod == "" {
		err := node(s, q.Resolution, &out)
		return out, err
	}
	series := seriesOf(s, m, q.Pod)
	if series == nil {
		return out, fmt.Errorf("no pod %s is followed on this node", q.Pod)
	}
	var got []sampler.GroupSample
	switch q.Resolution {
	case "", status.Fast:
		got, _ = series.Window(make([]sampler.GroupSample, s.Slots()), nil)
	case status.Second:
		got, _ = series.Seconds(make([]sampler.GroupSample, sampler.KeepPod1s/time.Second), nil)
	case status.Minute:
		points, _ := series.History(make([]sampler.HistoryPoint, sampler.KeepHistory/time.Minute), nil)
		out.Minutes = minutes(points)
		return out, nil
	default:
		return out, badResolution(q.Resolution)
	}
	for i := range got {
		x := &got[i]
		out.Pod = append(out.Pod, status.PodSample{BootSeconds: x.At.Seconds(), UsageBytes: status.Figure(x.Usage.Bytes()), WorkingSetBytes: status.Figure(x.WorkingSet.Bytes()),
			AnonBytes: status.Figure(x.Anon.Bytes()), ShmemBytes: status.Figure(x.Shmem.Bytes()), ActiveFileBytes: status.Figure(x.ActiveFile.Bytes()), SwapBytes: status.Figure(x.Swap.Bytes())})
	}
	return out, nil
}

func node(s *sampler.Sampler, resolution string, out *status.Samples) error {
	var got []sampler.NodeSample
	switch resolution {
	case "", status.Fast:
		got, _ = s.Window(make([]sampler.NodeSample, s.Slots()), nil)
	case status.Second:
		got, _ = s.Seconds(make([]sampler.NodeSample, sampler.KeepNode1s/time.Second), nil)
	case status.Minute:
		points, _ := s.History(make([]sampler.HistoryPoint, sampler.KeepHistory/time.Minute), nil)
		out.Minutes = minutes(points)
		return nil
	default:
		return badResolution(resolution)
	}
	for i := range got {
		x := &got[i]
		out.Node = append(out.Node, status.Sample{
			BootSeconds: x.At.Seconds(), CapacityBytes: status.Figure(x.Capacity.Bytes()), RootWorkingSet: status.Figure(x.RootWorkingSet.Bytes()), RootActiveFile: status.Figure(x.RootActiveFile.Bytes()),
			PodsWorkingSet: status.Figure(x.PodsWorkingSet.Bytes()), PodsActiveFile: status.Figure(x.PodsActiveFile.Bytes()), PodsLimit: status.Figure(x.PodsLimit.Bytes()), MemAvailable: status.Figure(x.MemAvailable.Bytes()),
			StallSomeMicros: status.Figure(x.StallSome.Bytes()), StallFullMicros: status.Figure(x.StallFull.Bytes()),
		})
	}
	return nil
}

func badResolution(text string) error {
	return fmt.Errorf("resolution %q: want %s, %s or %s", text, status.Fast, status.Second, status.Minute)
}

func minutes(points []sampler.HistoryPoint) []status.MinuteSum {
	out := make([]status.MinuteSum, 0, len(points))
	for _, p := range points {
		out = append(out, status.MinuteSum{BootSeconds: p.At.Seconds(), PeakWorkingSet: status.Figure(p.PeakWorkingSet.Bytes()), HeldFloor: status.Figure(p.HeldFloor.Bytes())})
	}
	return out
}

// seriesOf finds what is followed of a pod, by its namespace and name.
func seriesOf(s *sampler.Sampler, m *podmap.Map, pod string) *sampler.Series {
	for i := range m.Pods {
		if p := &m.Pods[i]; p.Namespace+"/"+p.Name == pod {
			for _, series := range s.Series() {
				if series.Target.Key == p.UID && !series.Gone() {
					return series
				}
			}
		}
	}
	return nil
}
