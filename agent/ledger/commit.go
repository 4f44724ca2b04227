package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// format is that of the file: its buckets and how values are framed. What documents and records hold has versions of its own.
const format = 1

// The buckets of the file. A log's is logPrefix and its name, which bucketAbout has as a key: see tallyLine.
var (
	bucketAbout     = []byte("ledger")
	bucketDocuments = []byte("documents")
	keyFormat       = []byte("format")
	keyLost         = []byte("lost")
)

const logPrefix = "log:"

// Run writes documents and records until ctx ends, then writes what still waits and returns nil. It has to end after all that
// saves.
func (l *Ledger) Run(ctx context.Context) error {
	l.running.Store(true)
	defer l.running.Store(false)
	b := batch{wait: retryFirst}
	idle := time.NewTicker(pruneEvery)
	defer idle.Stop()
	for {
		var records <-chan queued
		if !b.full() {
			records = l.records
		}
		var again <-chan time.Time
		if l.file.Load() == nil {
			again = time.After(retryMost) // somebody may wait for what is in it
		}
		select {
		case <-ctx.Done():
			for more := true; more; {
				b.drain(l)
				more = len(b.puts) > 0 || len(b.records) > 0
				if err := l.commitBatch(&b); err != nil {
					l.giveUp(&b, err)
					return nil // it is in Fault and in the log
				}
			}
			return nil
		case p := <-l.puts:
			b.puts = append(b.puts, p)
			b.drain(l)
		case r := <-records:
			if b.add(r); b.due == nil {
				b.due = time.After(gather)
			}
			if !b.full() || b.wait > retryFirst {
				continue
			}
		case <-b.due:
		case <-again:
		case <-idle.C:
		}
		l.commitBatch(&b)
	}
}

// batch is what goes into one commit.
type batch struct {
	puts    []*put
	records []queued
	bytes   int
	due     <-chan time.Time // when records are to be written; nil: there are none
	wait    time.Duration    // after the next failure
}

func (b *batch) full() bool { return b.bytes >= batchBytes || len(b.records) >= queueRecords }

func (b *batch) add(r queued) {
	b.records = append(b.records, r)
	b.bytes += len(r.data)
}

// drain takes all that waits.
func (b *batch) drain(l *Ledger) {
	for {
		var records <-chan queued
		if !b.full() {
			records = l.records
		}
		select {
		case r := <-records:
			b.add(r)
			continue
		default:
		}
		select {
		case p := <-l.puts:
			b.puts = append(b.puts, p)
		case r := <-records:
			b.add(r)
		default:
			return
		}
	}
}

// commitBatch writes b. Records that could not be written stay in it for a next time; documents are not held back by them.
func (l *Ledger) commitBatch(b *batch) error {
	err := l.commit(b.puts, b.records)
	if err != nil && len(b.puts) > 0 && len(b.records) > 0 {
		if perr := l.commit(b.puts, nil); perr == nil {
			b.deliver(nil)
		}
	}
	b.deliver(err)
	if b.due = nil; err == nil {
		for i := range b.records {
			b.records[i].tell(b.records[i].id, nil)
		}
		b.records, b.bytes, b.wait = nil, 0, retryFirst
	} else if len(b.records) > 0 {
		b.due = time.After(b.wait)
		b.wait = min(2*b.wait, retryMost)
	}
	return err
}

// giveUp drops all records that wait.
func (l *Ledger) giveUp(b *batch, err error) {
	for {
		for i := range b.records {
			l.dropped.Add(1)
			b.records[i].tell(0, err)
		}
		b.records = b.records[:0]
		select {
		case r := <-l.records:
			b.records = append(b.records, r)
		default:
			return
		}
	}
}

func (b *batch) deliver(err error) {
	for _, p := range b.puts {
		p.done <- err
	}
	b.puts = nil
}

// commit writes all, or nothing. Without either it takes old records out.
func (l *Ledger) commit(puts []*put, records []queued) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := error(errClosed)
	if !l.closed {
		err = l.write(puts, records)
	}
	if err != nil {
		l.failed.Add(1)
		if l.Fault() == "" {
			l.log.Error("ledger not written", "file", l.path, "error", err)
		}
	}
	l.note(err)
	return err
}

// write needs mu. A file that is damaged, or was removed, is replaced by one with all documents.
func (l *Ledger) write(puts []*put, records []queued) error {
	for try := 0; ; try++ {
		h := l.file.Load()
		if h != nil && h == l.suspect.Load() {
			l.file.Store(nil)
			abandon(h.file)
			h = nil
		}
		if h == nil {
			if err := l.open(); err != nil {
				return err
			}
			h = l.file.Load()
			l.state.Lock()
			l.unread = nil // it has been read now, see take
			l.state.Unlock()
		}
		var after map[string]tally
		err := guard(func() error {
			return h.db.Update(func(tx *bbolt.Tx) (err error) {
				after, err = l.store(tx, puts, records)
				return err
			})
		})
		if err == nil && h.inPlace(l.path) {
			l.tallies, l.rewrite = after, false
			l.commits++
			l.size.Store(h.size())
			l.saved(puts)
			return nil
		}
		l.file.Store(nil) // after an error it is not known what is on disk: it is opened anew
		again := err == nil || errors.Is(err, errDamaged)
		if err == nil {
			err = errors.New("it was removed")
		}
		if errors.Is(err, errDamaged) {
			abandon(h.file)
		} else {
			h.close()
		}
		if try > 0 || !again {
			return fmt.Errorf("write ledger %s: %w", l.path, err)
		}
	}
}

// saved books what is on disk.
func (l *Ledger) saved(puts []*put) {
	l.state.Lock()
	defer l.state.Unlock()
	for _, p := range puts {
		if l.docs[p.name] = p.data; p.data == nil {
			delete(l.docs, p.name)
		}
	}
}

// begin fills a new file.
func (l *Ledger) begin(tx *bbolt.Tx) error {
	about, err := tx.CreateBucket(bucketAbout)
	if err != nil {
		return err
	}
	if err := about.Put(keyFormat, strconv.AppendInt(nil, format, 10)); err != nil {
		return err
	}
	l.state.Lock()
	was, docs := l.lost, maps.Clone(l.docs)
	l.state.Unlock()
	if was.File != "" {
		data, err := json.Marshal(was)
		if err != nil {
			return err
		}
		if err := about.Put(keyLost, data); err != nil {
			return err
		}
	}
	documents, err := tx.CreateBucket(bucketDocuments)
	if err != nil {
		return err
	}
	for name, data := range docs {
		if err := documents.Put([]byte(name), frame([]byte(name), data)); err != nil {
			return err
		}
	}
	for name, t := range l.tallies {
		l.tallies[name] = tally{last: t.last}
	}
	return nil
}

// take reads all that is in a file, checks it, and keeps what the ledger has in memory.
func (l *Ledger) take(tx *bbolt.Tx) error {
	about, documents := tx.Bucket(bucketAbout), tx.Bucket(bucketDocuments)
	if about == nil {
		return damaged("another program wrote it: it has no bucket %s", bucketAbout)
	}
	version, err := strconv.Atoi(string(about.Get(keyFormat)))
	switch {
	case err != nil || version < 1:
		return damaged("format %q", about.Get(keyFormat))
	case version > format:
		return fmt.Errorf("format %d, known is %d: %w; it is left as it is", version, format, ErrNewer)
	case documents == nil:
		return damaged("it has no bucket %s", bucketDocuments)
	}
	was, docs := lost{}, map[string][]byte{}
	if data := about.Get(keyLost); data != nil {
		if err := json.Unmarshal(data, &was); err != nil {
			return damaged("what was lost before: %v", err)
		}
	}
	if err := documents.ForEach(func(k, v []byte) error {
		data, ok := unframe(k, v)
		if !ok {
			return damaged("document %q", k)
		}
		docs[string(k)] = slices.Clone(data)
		return nil
	}); err != nil {
		return err
	}
	tallies := map[string]tally{}
	if err := tx.ForEach(func(k []byte, b *bbolt.Bucket) error {
		name, ok := strings.CutPrefix(string(k), logPrefix)
		if !ok {
			return nil
		}
		t, err := count(b)
		tallies[name] = t
		if err != nil {
			return fmt.Errorf("log %s: %w", name, err)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := about.ForEach(func(k, was []byte) error {
		name, ok := bytes.CutPrefix(k, []byte(logPrefix))
		if is := tallyLine(tx, tallies[string(name)]); ok && !bytes.Equal(was, is) && bytes.HasPrefix(was, is[:bytes.IndexByte(is, ' ')+1]) {
			return damaged("log %s: commit, records and bytes are %s, were %s", name, is, was)
		}
		return nil
	}); err != nil {
		return err
	}
	l.state.Lock()
	defer l.state.Unlock()
	for name, data := range docs {
		if _, known := l.docs[name]; !known {
			l.docs[name] = data
		}
	}
	if l.lost.File == "" {
		l.lost = was
	}
	for name, t := range tallies {
		t.last = max(t.last, l.tallies[name].last)
		l.tallies[name] = t
	}
	return nil
}

// store makes the changes of one commit.
func (l *Ledger) store(tx *bbolt.Tx, puts []*put, records []queued) (map[string]tally, error) {
	about, documents := tx.Bucket(bucketAbout), tx.Bucket(bucketDocuments)
	if about == nil || documents == nil {
		return nil, damaged("it has no bucket %s or %s", bucketAbout, bucketDocuments)
	}
	if l.rewrite {
		l.state.Lock()
		docs := maps.Clone(l.docs)
		l.state.Unlock()
		for name, data := range docs {
			if err := documents.Put([]byte(name), frame([]byte(name), data)); err != nil {
				return nil, err
			}
		}
	}
	for _, p := range puts {
		name := []byte(p.name)
		if p.data == nil {
			if err := documents.Delete(name); err != nil {
				return nil, err
			}
		} else if err := documents.Put(name, frame(name, p.data)); err != nil {
			return nil, err
		}
	}
	after := maps.Clone(l.tallies)
	now := time.Now()
	for i := range records {
		r := &records[i]
		t := after[r.log]
		if err := l.append(tx, r, &t); err != nil {
			return nil, err
		}
		after[r.log] = t
	}
	for name, log := range l.logs {
		if b := tx.Bucket([]byte(logPrefix + name)); b != nil {
			t := after[name]
			if err := log.prune(b, &t, now); err != nil {
				return nil, err
			}
			after[name] = t
		}
	}
	for name, t := range after {
		key := []byte(logPrefix + name)
		if tx.Bucket(key) == nil {
			continue
		}
		if err := about.Put(key, tallyLine(tx, t)); err != nil {
			return nil, err
		}
	}
	return after, nil
}

// tallyLine is what a commit notes of a log: whole records that are missing break no checksum. It counts for its commit alone,
// as other versions of the agent write none.
func tallyLine(tx *bbolt.Tx, t tally) []byte {
	return fmt.Appendf(nil, "%d %d %d", tx.ID(), t.records, t.bytes)
}
