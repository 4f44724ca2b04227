package recording

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// Limits of a Writer.
const (
	MinBytes = 1 << 20

	flushEvery  = time.Second
	flushBytes  = 256 << 10 // not compressed
	queueLength = 512       // chunks between loop and disk: some seconds under pressure
	slackBytes  = 1 << 20   // beyond half of MaxBytes, while the loop begins anew
)

// Options configure a Writer. Path and MaxBytes are required.
type Options struct {
	Path     string // of the newest part; the one before it has OldSuffix
	MaxBytes int64  // of both parts together, at least MinBytes
	Header   Header
}

// OldSuffix names the part of a recording before the newest one.
const OldSuffix = ".old"

// Writer writes a recording. Its methods but Run are for one goroutine, never wait for the disk, and drop what the disk
// does not take: then the episode breaks off and the next begins.
type Writer struct {
	opts    Options
	enc     encoder
	open    bool
	queue   chan chunk
	full    atomic.Bool // the newest part has its size: an episode that begins moves it away
	dropped atomic.Uint64
	written atomic.Int64
	fault   atomic.Pointer[string]
}

type chunk struct {
	data  []byte
	start bool
}

// NewWriter checks the options and starts nothing.
func NewWriter(o Options) (*Writer, error) {
	if o.Path == "" {
		return nil, errors.New("recording: no file given")
	}
	if o.MaxBytes < MinBytes {
		return nil, fmt.Errorf("recording %s: %d bytes, want at least %d", o.Path, o.MaxBytes, MinBytes)
	}
	return &Writer{opts: o, queue: make(chan chunk, queueLength)}, nil
}

// SetHeader says what the episodes that begin from now on are recorded with.
func (w *Writer) SetHeader(h Header) { w.opts.Header = h }

// Open reports whether an episode is being recorded that goes on: when not, and there is something to record, Begin.
func (w *Writer) Open() bool { return w.open && !w.full.Load() }

// Recording reports whether an episode is open, even one that must begin anew.
func (w *Writer) Recording() bool { return w.open }

// Begin starts an episode from what the judge remembers now.
func (w *Writer) Begin(at time.Time, s judge.State) {
	w.enc.start(w.opts.Header, at, s)
	w.open = true
	w.send(true)
}

// Look records a look and its verdict.
func (w *Writer) Look(at time.Time, l *judge.Look, v *pressure.Verdict) {
	if w.open {
		w.enc.look(at, l, v)
		w.send(false)
	}
}

// Read records a reading of the pods and the ranking that came of it.
func (w *Writer) Read(p *judge.Pods, ranking []policy.Candidate) {
	if w.open {
		w.enc.read(p, ranking)
		w.send(false)
	}
}

// Decide records a decision, the agent's id of it, and why it was held back, "" when it was not.
func (w *Writer) Decide(p *judge.Pods, d *policy.Decision, held, id string) {
	if w.open {
		w.enc.decide(p, d, held, id)
		w.send(false)
	}
}

// Plan records a look at page cache.
func (w *Writer) Plan(p *judge.Pods, c *policy.CachePlan) {
	if w.open {
		w.enc.plan(p, c)
		w.send(false)
	}
}

// Event records what happened besides.
func (w *Writer) Event(at time.Time, kind string, what any) {
	if !w.open {
		return
	}
	data, err := json.Marshal(what)
	if err != nil {
		data, _ = json.Marshal(err.Error())
	}
	w.enc.put(line{Event: &Event{At: at, Kind: kind, Data: data}})
	w.send(false)
}

// End ends the episode.
func (w *Writer) End(why string) {
	if w.open {
		w.enc.put(line{End: why})
		w.send(false)
		w.open = false
	}
}

func (w *Writer) send(start bool) {
	data, err := w.enc.take()
	if err != nil {
		w.fail(fmt.Errorf("encode recording: %w", err))
		w.open = false
		return
	}
	select {
	case w.queue <- chunk{data, start}:
	default:
		w.dropped.Add(1)
		w.open = false
	}
}

// Stats are counters of a Writer; any goroutine may ask.
type Stats struct {
	Bytes   int64  // written since the start
	Dropped uint64 // episodes that broke off because the disk did not keep up
	Fault   string // why the last write did not succeed, "" when it did
}

// Stats may be called by any goroutine.
func (w *Writer) Stats() Stats {
	s := Stats{Bytes: w.written.Load(), Dropped: w.dropped.Load()}
	if f := w.fault.Load(); f != nil {
		s.Fault = *f
	}
	return s
}

func (w *Writer) fail(err error) {
	text := err.Error()
	w.fault.Store(&text)
}

// Run writes until ctx ends and returns nil then; a disk that cannot be written is a Fault, and tried again.
func (w *Writer) Run(ctx context.Context) error {
	p := part{w: w}
	defer p.close()
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			for {
				select {
				case c := <-w.queue:
					p.add(c)
					continue
				default:
				}
				p.flush()
				return nil
			}
		case c := <-w.queue:
			p.add(c)
		case <-tick.C:
			p.flush()
		}
	}
}

// part is the newest file.
type part struct {
	w       *Writer
	file    *os.File
	size    int64
	pending bytes.Buffer // lines not written yet
	zip     *gzip.Writer
	member  bytes.Buffer
	skip    bool // until an episode begins: lines before it are gone
}

func (p *part) add(c chunk) {
	if c.start {
		p.skip = false
		if p.file == nil || p.w.full.Load() {
			p.flush()
			p.renew()
		}
	}
	if p.skip {
		return
	}
	p.pending.Write(c.data)
	if p.pending.Len() >= flushBytes {
		p.flush()
	}
}

// renew moves the newest part away, over the one before it, and begins another: one that an agent before this left too.
func (p *part) renew() {
	p.close()
	path := p.w.opts.Path
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		if err = os.Rename(path, path+OldSuffix); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		p.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	}
	if err != nil {
		p.lose(fmt.Errorf("make recording: %w", err))
		return
	}
	p.size = 0
	p.w.full.Store(false)
}

// flush writes what is pending as one member.
func (p *part) flush() {
	if p.pending.Len() == 0 || p.file == nil {
		p.pending.Reset()
		return
	}
	defer p.pending.Reset()
	if p.size > p.w.opts.MaxBytes/2+slackBytes {
		p.skip = true
		return
	}
	p.member.Reset()
	if p.zip == nil {
		p.zip, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is right
	}
	p.zip.Reset(&p.member)
	_, err := p.zip.Write(p.pending.Bytes())
	if err = errors.Join(err, p.zip.Close()); err == nil {
		_, err = p.file.Write(p.member.Bytes())
	}
	if err != nil {
		p.lose(fmt.Errorf("write recording %s: %w", p.w.opts.Path, err))
		return
	}
	p.size += int64(p.member.Len())
	p.w.written.Add(int64(p.member.Len()))
	p.w.fault.Store(nil)
	if p.size >= p.w.opts.MaxBytes/2 {
		p.w.full.Store(true)
	}
}

// lose gives the file up; the next episode tries again.
func (p *part) lose(err error) {
	p.w.fail(err)
	p.close()
	p.skip = true
	p.w.full.Store(true)
}

func (p *part) close() {
	if p.file != nil {
		p.file.Close() // every write was checked
		p.file = nil
	}
}
