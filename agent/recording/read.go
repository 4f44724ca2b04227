package recording

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Limits of what is read: a recording is made by an agent, but a file may be anything.
const (
	maxLine   = 32 << 20
	maxMember = 256 << 20
)

// ErrForeign says that a file is no recording.
var ErrForeign = errors.New("not a recording of Spillway")

// memberBegin is how the members begin that a Writer writes: deflate, no flags, no time, fastest, unknown system.
var memberBegin = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255}

// Damage is a stretch of a file that could not be read.
type Damage struct {
	Offset int64 // in the file, bytes
	Err    error
}

// Error names the place.
func (d Damage) Error() string { return fmt.Sprintf("at byte %d: %v", d.Offset, d.Err) }

// scan reads a recording and hands every line to take, until take returns an error. What is damaged is passed over and
// returned; lines after it are handed on once an episode begins, as nothing before it is whole.
func scan(data []byte, take func(line) error) ([]Damage, error) {
	if !bytes.HasPrefix(data, memberBegin[:3]) {
		return nil, ErrForeign
	}
	var damages []Damage
	lost, any := false, false
	for at := 0; at < len(data); {
		text, size, err := member(data[at:])
		lines := bufio.NewScanner(bytes.NewReader(text))
		lines.Buffer(nil, maxLine)
		bad := err
		for lines.Scan() {
			var l line
			if jerr := json.Unmarshal(lines.Bytes(), &l); jerr != nil {
				if !any {
					return nil, fmt.Errorf("%w: %w", ErrForeign, jerr)
				}
				if err == nil { // the last line of a member that is cut off is no further damage
					bad = jerr
				}
				break
			}
			if l.Start != nil {
				if l.Start.Format != formatName {
					return damages, ErrForeign
				}
				if l.Start.Version < 1 || l.Start.Version > Version {
					return damages, fmt.Errorf("a recording of version %d, this program reads versions 1 to %d", l.Start.Version, Version)
				}
				lost = false
			} else if !any {
				return nil, fmt.Errorf("%w: it does not begin with an episode", ErrForeign)
			}
			any = true
			if lost {
				continue
			}
			if err := take(l); err != nil {
				return damages, err
			}
		}
		if bad == nil {
			bad = lines.Err()
		}
		if bad != nil {
			damages, lost = append(damages, Damage{int64(at), bad}), true
		}
		if size == 0 { // the end of the member is not known: the next one is where one begins
			next := bytes.Index(data[at+1:], memberBegin)
			if next < 0 {
				break
			}
			size = next + 1
		}
		at += size
	}
	if !any {
		if len(damages) > 0 {
			return damages, fmt.Errorf("nothing of it can be read: %w", damages[0])
		}
		return damages, ErrForeign
	}
	return damages, nil
}

// member unpacks the first member; size is how long it is, 0 when it is damaged. What could be unpacked is returned in
// any case.
func member(data []byte) (text []byte, size int, err error) {
	in := bytes.NewReader(data)
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, 0, err
	}
	z.Multistream(false)
	text, err = io.ReadAll(io.LimitReader(z, maxMember+1))
	if err == nil && len(text) > maxMember {
		err = fmt.Errorf("a part of over %d bytes", maxMember)
	}
	if err != nil {
		return text, 0, err
	}
	return text, len(data) - in.Len(), nil
}
