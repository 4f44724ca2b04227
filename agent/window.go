package agent

import (
	"fmt"
	"time"

	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/agent/status"
)

// window reads samples from the rings: any goroutine may.
func (a *Agent) window(q status.SampleQuery) (status.Samples, error) {
	out := status.Samples{At: time.Now(), BootSeconds: a.samples.Now().Seconds()}
	if q.Pod == "" {
		err := a.nodeWindow(q.Resolution, &out)
		return out, err
	}
	series := a.seriesOf(q.Pod)
	if series == nil {
		return out, fmt.Errorf("no pod %s is followed on this node", q.Pod)
	}
	var got []sampler.GroupSample
	switch q.Resolution {
	case "", status.Fast:
		got, _ = series.Window(make([]sampler.GroupSample, a.samples.Slots()), nil)
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
		s := &got[i]
		out.Pod = append(out.Pod, status.PodSample{BootSeconds: s.At.Seconds(), UsageBytes: number(s.Usage), WorkingSetBytes: number(s.WorkingSet),
			AnonBytes: number(s.Anon), ShmemBytes: number(s.Shmem), ActiveFileBytes: number(s.ActiveFile), SwapBytes: number(s.Swap)})
	}
	return out, nil
}

func (a *Agent) nodeWindow(resolution string, out *status.Samples) error {
	var got []sampler.NodeSample
	switch resolution {
	case "", status.Fast:
		got, _ = a.samples.Window(make([]sampler.NodeSample, a.samples.Slots()), nil)
	case status.Second:
		got, _ = a.samples.Seconds(make([]sampler.NodeSample, sampler.KeepNode1s/time.Second), nil)
	case status.Minute:
		points, _ := a.samples.History(make([]sampler.HistoryPoint, sampler.KeepHistory/time.Minute), nil)
		out.Minutes = minutes(points)
		return nil
	default:
		return badResolution(resolution)
	}
	for i := range got {
		s := &got[i]
		out.Node = append(out.Node, status.Sample{
			BootSeconds: s.At.Seconds(), CapacityBytes: number(s.Capacity), RootWorkingSet: number(s.RootWorkingSet), RootActiveFile: number(s.RootActiveFile),
			PodsWorkingSet: number(s.PodsWorkingSet), PodsActiveFile: number(s.PodsActiveFile), PodsLimit: number(s.PodsLimit), MemAvailable: number(s.MemAvailable),
			StallSomeMicros: number(s.StallSome), StallFullMicros: number(s.StallFull),
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
		out = append(out, status.MinuteSum{BootSeconds: p.At.Seconds(), PeakWorkingSet: number(p.PeakWorkingSet), HeldFloor: number(p.HeldFloor)})
	}
	return out
}

// seriesOf finds what is followed of a pod, by its namespace and name.
func (a *Agent) seriesOf(pod string) *sampler.Series {
	m := a.mapper.Map()
	for i := range m.Pods {
		if p := &m.Pods[i]; p.Namespace+"/"+p.Name == pod {
			for _, s := range a.samples.Series() {
				if s.Target.Key == p.UID && !s.Gone() {
					return s
				}
			}
		}
	}
	return nil
}

// stalls lists the windows that are covered.
func stalls(s *pressure.Stall) []status.Stall {
	var out []status.Stall
	for _, w := range []struct {
		kind   string
		window time.Duration
		share  pressure.Share
	}{
		{"some", 200 * time.Millisecond, s.Some200ms}, {"some", time.Second, s.Some1s}, {"some", 10 * time.Second, s.Some10s},
		{"full", 200 * time.Millisecond, s.Full200ms}, {"full", time.Second, s.Full1s}, {"full", 10 * time.Second, s.Full10s},
	} {
		if w.share.Known {
			out = append(out, status.Stall{Kind: w.kind, WindowSeconds: w.window.Seconds(), Ratio: w.share.Value})
		}
	}
	return out
}
