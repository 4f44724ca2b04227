package status

import (
	"fmt"
	"time"
)

// Timing is what an eviction is taken to last on this node, beside the exit of its pod: the usual values until each was measured.
type Timing struct {
	CallSeconds  float64 `json:"callSeconds"` // until the pod is terminating, with a reserve
	Calls        int     `json:"calls"`       // that were measured, of the newest
	CallMeasured bool    `json:"callMeasured"`
	CutSeconds   float64 `json:"cutSeconds"` // from cutting a grace period short to the end of the last process
	Cuts         int     `json:"cuts"`
	CutMeasured  bool    `json:"cutMeasured"`
	RuntimeStops bool    `json:"runtimeStops"` // the container runtime may be asked to stop the containers of a cut
	BackBytes    float64 `json:"releaseBytesPerSecond"`
	Releases     int     `json:"releases"`
	BackMeasured bool    `json:"releaseMeasured"`
}

// line prints the parts, each with what it rests on.
func (t *Timing) line() string {
	rests := func(measured bool, n int) string {
		if measured {
			return fmt.Sprintf("%d measured", n)
		}
		return "usual"
	}
	by := "by the API server alone"
	if t.RuntimeStops {
		by = "by the runtime"
	}
	seconds := func(s float64) string {
		return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond).String()
	}
	return fmt.Sprintf("call %s (%s)   cut %s %s (%s)   memory back %s/s (%s)", seconds(t.CallSeconds), rests(t.CallMeasured, t.Calls),
		by, seconds(t.CutSeconds), rests(t.CutMeasured, t.Cuts), size(t.BackBytes), rests(t.BackMeasured, t.Releases))
}
