package incident

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"errors"
	"fmt"

	"spillway/agent/status"
)

// MaxRecord is what one record takes at most, in bytes: an incident has two.
const MaxRecord = 16 << 10

// maxText bounds what a record may unfold to.
const maxText = 1 << 20

// format is the first byte of a record: deflated JSON follows.
const format = 1

// Record is one entry of the log: a part of an incident, or an eviction of Spillway's own.
type Record struct {
	Incident *Incident     `json:"incident,omitempty"`
	Rest     bool          `json:"rest,omitempty"` // Incident is the second part
	Eviction *status.Event `json:"eviction,omitempty"`
}

// Encode makes a record of at most MaxRecord bytes. A part that would be larger loses points of its series, then lists.
func Encode(r Record) ([]byte, error) {
	for try := 0; ; try++ {
		data, err := encode(&r)
		if err != nil {
			return nil, err
		}
		if len(data) <= MaxRecord {
			return data, nil
		}
		if r.Incident == nil || try > 6 {
			return nil, fmt.Errorf("encode incident: %d bytes, at most %d fit", len(data), MaxRecord)
		}
		r.Incident = r.Incident.smaller(try)
	}
}

func encode(r *Record) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode incident: %w", err)
	}
	var out bytes.Buffer
	out.WriteByte(format)
	w, err := flate.NewWriter(&out, flate.BestCompression)
	if err != nil {
		return nil, fmt.Errorf("encode incident: %w", err)
	}
	if _, err = w.Write(text); err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encode incident: %w", err)
	}
	return out.Bytes(), nil
}

// smaller returns a copy with less in it.
func (i *Incident) smaller(try int) *Incident {
	out := *i
	if out.Note == "" {
		out.Note = "it was too large: parts were left out"
	}
	pods := make([]Pod, len(i.Pods))
	for n, p := range i.Pods {
		if p.Series = p.Series.thin(); try >= 4 {
			p.Series = Series{}
		}
		pods[n] = p
	}
	if out.Pods, out.Series = pods, out.Series.thin(); try >= 4 {
		out.Series = Series{}
	}
	if try >= 2 {
		out.shorter(2)
		out.Neighbours, out.Decisions = first(out.Neighbours, 5), first(out.Decisions, 2)
		out.Kills, out.Triggers, out.Actions = first(out.Kills, 1), first(out.Triggers, 4), first(out.Actions, 4)
		out.Pressure.Gates = nil
	}
	if try >= 5 {
		out.shorter(0)
		out.Neighbours, out.Decisions, out.Kills, out.Actions, out.Pods = nil, nil, nil, nil, nil
		out.Pressure.Thresholds, out.Pressure.Reason = nil, ""
	}
	return &out
}

func first[T any](in []T, n int) []T { return in[:min(n, len(in))] }

// Decode reads what Encode made.
func Decode(data []byte) (Record, error) {
	var r Record
	if len(data) == 0 || data[0] != format {
		return r, errors.New("decode incident: another version of the agent wrote it")
	}
	in := &bounded{from: flate.NewReader(bytes.NewReader(data[1:])), left: maxText}
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return Record{}, fmt.Errorf("decode incident: %w", err)
	}
	if i := r.Incident; i != nil {
		if i.Version != Version {
			return Record{}, fmt.Errorf("decode incident: version %d, known is %d", i.Version, Version)
		}
		if !i.Series.valid() {
			return Record{}, errors.New("decode incident: the node's columns differ in length")
		}
		for n := range i.Pods {
			if !i.Pods[n].Series.valid() {
				return Record{}, errors.New("decode incident: a pod's columns differ in length")
			}
		}
	}
	return r, nil
}

// bounded fails after so many bytes.
type bounded struct {
	from interface{ Read([]byte) (int, error) }
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("more than %d bytes", maxText)
	}
	n, err := b.from.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
