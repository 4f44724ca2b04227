package score

import (
	"encoding/json"
	"fmt"
	"time"

	"spillway/agent/status"
)

const version = 1

type document struct {
	Version int                 `json:"version"`
	BootID  string              `json:"bootId"`
	Wall    time.Time           `json:"wall"`
	At      time.Duration       `json:"at"` // since boot
	Clock   time.Duration       `json:"clock"`
	Open    []*entry            `json:"open,omitempty"`
	Judged  []status.WouldEvict `json:"judged,omitempty"`
	Hours   []hour              `json:"hours,omitempty"`
}

// Save returns all that is known, for Load.
func (s *Score) Save(bootID string, wall time.Time) ([]byte, error) {
	s.changed = false
	return json.Marshal(document{version, bootID, wall.UTC(), s.at, s.clock, s.open, s.judged, s.hours})
}

// Load takes over what Save returned. What waited in the same boot of the node goes on to wait, and its readings have a gap; what
// waited in another boot is returned as not judged.
func (s *Score) Load(data []byte, bootID string, wall time.Time) ([]status.WouldEvict, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("parse the score of observe mode: %w", err)
	}
	if d.Version != version {
		return nil, fmt.Errorf("parse the score of observe mode: version %d, this program reads version %d", d.Version, version)
	}
	next := Score{clock: max(0, d.Clock), at: max(0, d.At), judged: d.Judged, hours: d.Hours}
	for _, e := range d.Open {
		if e != nil && len(next.open) < mostOpen {
			next.open = append(next.open, e)
		}
	}
	next.close(func(*entry) bool { return false }) // bounds the list
	if len(next.hours) > Days*24+1 {
		next.hours = next.hours[len(next.hours)-Days*24-1:]
	}
	var out []status.WouldEvict
	if bootID == "" || bootID != d.BootID {
		out = next.Void(wall, "the node was started again")
		next.clock += min(max(0, wall.Sub(d.Wall)), Days*24*time.Hour)
		next.at = 0
		next.forget()
	}
	*s = next
	return out, nil
}
