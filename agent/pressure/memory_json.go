package pressure

import (
	"encoding/json"
	"fmt"
	"time"
)

// memoryState is Memory as a recording holds it.
type memoryState struct {
	LastTrue   [Critical + 1]time.Duration `json:"lastTrue"`
	WasTrue    [Critical + 1]bool          `json:"wasTrue"`
	Rising     bool                        `json:"rising"`
	RiseSince  time.Duration               `json:"riseSince"`
	LastRise   time.Duration               `json:"lastRise"`
	LastSeen   time.Duration               `json:"lastSeen"`
	RiseFrom   Sample                      `json:"riseFrom"`
	Calm       *Sample                     `json:"calm,omitempty"`
	CalmSlow   *Slow                       `json:"calmSlow,omitempty"`
	RestSince  time.Duration               `json:"restSince,omitempty"`
	SoftMemory [maxSoft]softState          `json:"soft"`
}

type softState struct {
	Used    bool          `json:"used"`
	Met     bool          `json:"met"`
	Signal  Signal        `json:"signal"`
	Bytes   Bytes         `json:"bytes"`
	Percent float64       `json:"percent"`
	Grace   time.Duration `json:"grace"`
	Since   time.Duration `json:"since"`
	SeenAt  time.Duration `json:"seenAt"`
}

// MarshalJSON writes all that is remembered, so that a recording can begin at any moment.
func (m Memory) MarshalJSON() ([]byte, error) {
	s := memoryState{
		LastTrue: m.lastTrue, WasTrue: m.wasTrue, Rising: m.rising, RiseSince: m.riseSince, LastRise: m.lastRise, LastSeen: m.lastSeen, RiseFrom: m.riseFrom, RestSince: m.restSince,
	}
	if m.hasCalm {
		s.Calm = &m.calm
	}
	if m.hasCalmSlow {
		s.CalmSlow = &m.calmSlow
	}
	for i, x := range m.soft {
		s.SoftMemory[i] = softState{x.used, x.met, x.signal, x.bytes, x.percent, x.grace, x.since, x.seenAt}
	}
	return json.Marshal(s)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (m *Memory) UnmarshalJSON(data []byte) error {
	var s memoryState
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("parse what a verdict remembers: %w", err)
	}
	*m = Memory{
		lastTrue: s.LastTrue, wasTrue: s.WasTrue, rising: s.Rising, riseSince: s.RiseSince, lastRise: s.LastRise, lastSeen: s.LastSeen, riseFrom: s.RiseFrom, restSince: s.RestSince,
	}
	if s.Calm != nil {
		m.calm, m.hasCalm = *s.Calm, true
	}
	if s.CalmSlow != nil {
		m.calmSlow, m.hasCalmSlow = *s.CalmSlow, true
	}
	for i, x := range s.SoftMemory {
		m.soft[i] = softMemory{x.Used, x.Met, x.Signal, x.Bytes, x.Percent, x.Grace, x.Since, x.SeenAt}
	}
	return nil
}
