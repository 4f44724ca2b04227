// Package ledger keeps what must survive a restart of the agent, in one embedded store (bbolt) in one file: documents, which
// are replaced whole, and logs of records, which are bounded in number, bytes and age. A write that was confirmed is there
// after a crash at any moment. A file that cannot be used is set aside, and a new one starts. The package knows nothing of
// what is in documents and records.
package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// FileName is the ledger's file in Options.Dir.
const FileName = "ledger.db"

// Limits. The logs together are bounded by maxLogs, documents by maxDocument each; bbolt writes changed pages beside the old
// ones and never shrinks a file, which therefore may grow to some multiple of what is in it, and not beyond maxFile.
const (
	maxFile     = 64 << 20
	maxLogs     = 16 << 20
	maxDocument = 4 << 20
	maxRecord   = 64 << 10

	queueRecords = 1024                   // that wait to be written; further ones are dropped and counted
	batchBytes   = 1 << 20                // of records in one commit, so that a document behind it does not wait for long
	gather       = 200 * time.Millisecond // for which a record waits for others
	retryFirst   = time.Second            // until records are tried again that could not be written; doubled each time
	retryMost    = 30 * time.Second
	pruneEvery   = time.Hour        // of logs that nobody writes to
	saveWait     = 10 * time.Second // for the disk, until a save counts as failed
	lockWait     = 2 * time.Second  // for another process to let go of the file
	lostFor      = time.Hour        // how long a loss is told to owners of documents: the longest time that an eviction counts for
)

var (
	errClosed = errors.New("the ledger is closed")

	// ErrNewer says that the file has a format that this version does not know. It is left as it is.
	ErrNewer = errors.New("written by a newer version of the agent")

	// ErrLocked says that another process has the file open.
	ErrLocked = errors.New("another process has it open: does a second agent run with this state folder?")
)

// Options configure a Ledger. Dir is required.
type Options struct {
	Dir    string       // made with mode 0700 when it is not there
	Logger *slog.Logger // default: discard
}

// Ledger is the open store. All its methods may be called by any goroutine.
type Ledger struct {
	opts Options
	path string
	log  *slog.Logger
	wait time.Duration // saveWait

	puts    chan *put
	records chan queued
	running atomic.Bool // Run commits

	file    atomic.Pointer[handle] // nil: not open; replaced under mu
	suspect atomic.Pointer[handle] // in which a read met damage
	fault   atomic.Pointer[string]
	aside   atomic.Pointer[string]
	size    atomic.Int64
	failed  atomic.Uint64
	dropped atomic.Uint64

	mu      sync.Mutex // guards what follows, and all that is written to the file; taken before state
	logs    map[string]*Log
	tallies map[string]tally // of the logs in the file
	rewrite bool             // the file was opened again: the next commit writes all documents
	commits uint64
	closed  bool

	state  sync.Mutex        // guards docs, unread and lost
	docs   map[string][]byte // as they were last written: a new file gets them when this one is lost
	unread error             // why the file could not be opened yet
	lost   lost
}

// lost tells of the ledger that was set aside.
type lost struct {
	File string    `json:"file"`
	At   time.Time `json:"at"`
}

// put is one document to write.
type put struct {
	name string
	data []byte     // nil: it goes
	done chan error // capacity 1
}

// Open opens the ledger in opts.Dir, or makes one. A file that is damaged or no ledger is set aside, see SetAside. It returns
// an error when the options are wrong and when another process has the file (ErrLocked). A disk that cannot be read or written
// now is a Fault instead: each write tries again. It starts nothing.
func Open(opts Options) (*Ledger, error) {
	if opts.Dir == "" {
		return nil, errors.New("ledger: no folder")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Ledger{
		opts: opts, path: filepath.Join(opts.Dir, FileName), log: opts.Logger, wait: saveWait,
		puts: make(chan *put), records: make(chan queued, queueRecords),
		logs: map[string]*Log{}, tallies: map[string]tally{}, docs: map[string][]byte{},
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.open()
	if errors.Is(err, ErrLocked) {
		return nil, err
	}
	if err != nil {
		l.note(err)
		l.unread = err
	}
	return l, nil
}

// Close closes the file; what was not confirmed may be lost. A second call does nothing.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if h := l.file.Swap(nil); h != nil {
		return h.close()
	}
	return nil
}

// SetAside names the file that a ledger which could not be used was renamed to since Open, "" when there was none.
func (l *Ledger) SetAside() string { return text(l.aside.Load()) }

// Fault says why the file could not be opened or written last time, "" when it could.
func (l *Ledger) Fault() string { return text(l.fault.Load()) }

// Path names the file.
func (l *Ledger) Path() string { return l.path }

// Stats are a ledger's figures.
type Stats struct {
	Size        int64  // bytes of the file
	WriteErrors uint64 // commits that failed
	Dropped     uint64 // records that were not kept: the queue was full, or they are too large
}

// Stats returns the present figures.
func (l *Ledger) Stats() Stats {
	return Stats{Size: l.size.Load(), WriteErrors: l.failed.Load(), Dropped: l.dropped.Load()}
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// note keeps what became of the newest write.
func (l *Ledger) note(err error) {
	if err == nil {
		l.fault.Store(nil)
		return
	}
	s := err.Error()
	l.fault.Store(&s)
}

// Document is one value that is replaced whole.
type Document struct {
	l    *Ledger
	name string
}

// Document returns the document of that name, which need not exist yet.
func (l *Ledger) Document(name string) *Document { return &Document{l, name} }

// Load returns what was saved last, nil when nothing was. lost names the ledger that was set aside within the last hour, if
// the document may have been in it and was not saved since. An error says that the ledger could not be read when it was opened.
func (d *Document) Load() (data []byte, lost string, err error) {
	l := d.l
	l.state.Lock()
	defer l.state.Unlock()
	if data = l.docs[d.name]; data != nil {
		return bytes.Clone(data), "", nil
	}
	if l.unread != nil {
		return nil, "", l.unread
	}
	if age := time.Since(l.lost.At); l.lost.File != "" && age < lostFor && age > -lostFor {
		return nil, l.lost.File, nil
	}
	return nil, "", nil
}

// Save returns when data is there after a crash, or with the reason why it may not be. While Run runs, documents that are
// saved at a time share a commit: a save waits at most for the one under way and its own, whoever else writes, and no longer
// than 10 s for a disk that hangs. What was not confirmed may be there all the same.
func (d *Document) Save(data []byte) error {
	if len(data) > maxDocument {
		return fmt.Errorf("write ledger %s: %s has %d bytes, at most %d fit", d.l.path, d.name, len(data), maxDocument)
	}
	l, p := d.l, &put{d.name, append([]byte{}, data...), make(chan error, 1)}
	if !l.running.Load() {
		return l.commit([]*put{p}, nil)
	}
	timer := time.NewTimer(l.wait)
	defer timer.Stop()
	select {
	case l.puts <- p:
	case <-timer.C:
		return l.hangs()
	}
	select {
	case err := <-p.done:
		return err
	case <-timer.C:
		return l.hangs()
	}
}

func (l *Ledger) hangs() error {
	l.failed.Add(1)
	err := fmt.Errorf("write ledger %s: the disk did not confirm it within %s", l.path, l.wait)
	l.note(err)
	return err
}

// SetAside moves the document, which its owner cannot use, to a file beside the ledger, and returns its name.
func (d *Document) SetAside() (string, error) {
	l := d.l
	l.state.Lock()
	data := l.docs[d.name]
	l.state.Unlock()
	name, err := l.keepAside(d.name, data)
	if err == nil {
		err = l.commit([]*put{{name: d.name}}, nil)
	}
	if err != nil {
		return "", fmt.Errorf("set %s aside: %w", d.name, err)
	}
	return name, nil
}
