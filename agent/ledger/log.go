package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// Bounds are what a log holds at most; what is beyond them goes, oldest first. All are required.
type Bounds struct {
	Records int
	Bytes   int64         // of records with what is stored around them
	Age     time.Duration // of the time that records were appended with
}

// Record is one entry of a log.
type Record struct {
	ID   uint64 // grows with each record of its log and never comes again, in a new ledger neither
	At   time.Time
	Data []byte
}

// Log is an append-only list of records.
type Log struct {
	l      *Ledger
	name   string
	bounds Bounds
}

// queued is a record that waits to be written.
type queued struct {
	log  string
	at   time.Time
	data []byte
	done func(id uint64, err error) // nil: nobody waits to hear of it
	id   uint64                     // that the commit under way gives it
}

// tell says what became of the record.
func (r *queued) tell(id uint64, err error) {
	if r.done != nil {
		r.done(id, err)
	}
}

// tally is what a log has on disk.
type tally struct {
	records int
	bytes   int64
	last    uint64 // highest ID that was ever given
}

// Log returns the log of that name, which need not exist yet. All logs of a ledger may hold 16 MiB together.
func (l *Ledger) Log(name string, b Bounds) (*Log, error) {
	if name == "" || b.Records <= 0 || b.Bytes <= 0 || b.Age <= 0 {
		return nil, fmt.Errorf("ledger: log %q with bounds %+v", name, b)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logs[name] != nil {
		return nil, fmt.Errorf("ledger: log %q is made twice", name)
	}
	sum := b.Bytes
	for _, other := range l.logs {
		sum += other.bounds.Bytes
	}
	if sum > maxLogs {
		return nil, fmt.Errorf("ledger: logs of %d bytes, at most %d fit", sum, maxLogs)
	}
	g := &Log{l, name, b}
	l.logs[name] = g
	return g, nil
}

// Append queues a record and returns at once. Run writes it, within a second when the disk takes it, and before any document
// that is saved after it. False: the queue is full or data has more than 64 KiB, and the record is dropped and counted.
//
// done, if not nil, is called with the record's ID when it is there after a crash, or with the reason why it was given up: the
// ledger ended before the disk took it. It is called at most once, by Run, which waits for it; it must not save anything. It is
// not called when Append returns false.
func (g *Log) Append(at time.Time, data []byte, done func(id uint64, err error)) bool {
	if len(data) <= maxRecord {
		select {
		case g.l.records <- queued{log: g.name, at: at, data: slices.Clone(data), done: done}:
			return true
		default:
		}
	}
	g.l.dropped.Add(1)
	return false
}

// Newest returns up to n records that are on disk, newest first. It reads from disk.
func (g *Log) Newest(n int) (out []Record, err error) {
	err = g.read(func(b *bbolt.Bucket) error {
		c := b.Cursor()
		for k, v := c.Last(); k != nil && len(out) < n; k, v = c.Prev() {
			r, ok := record(k, v)
			if !ok {
				return damaged("record %x", k)
			}
			out = append(out, r)
		}
		return nil
	})
	return out, err
}

// After returns up to n records that are on disk and came after the one with that ID, oldest first. It reads from disk.
func (g *Log) After(id uint64, n int) (out []Record, err error) {
	err = g.read(func(b *bbolt.Bucket) error {
		if id == math.MaxUint64 {
			return nil
		}
		c := b.Cursor()
		for k, v := c.Seek(key(id + 1)); k != nil && len(out) < n; k, v = c.Next() {
			r, ok := record(k, v)
			if !ok {
				return damaged("record %x", k)
			}
			out = append(out, r)
		}
		return nil
	})
	return out, err
}

// Get returns the record with that ID; false: it is not on disk, or not any more. It reads from disk.
func (g *Log) Get(id uint64) (r Record, ok bool, err error) {
	err = g.read(func(b *bbolt.Bucket) error {
		k := key(id)
		v := b.Get(k)
		if v == nil {
			return nil
		}
		if r, ok = record(k, v); !ok {
			return damaged("record %d", id)
		}
		return nil
	})
	return r, ok && err == nil, err
}

// read calls f with the log's bucket, if there is one.
func (g *Log) read(f func(*bbolt.Bucket) error) error {
	h := g.l.file.Load()
	if h == nil {
		return fmt.Errorf("read log %s: ledger %s is not open: %s", g.name, g.l.path, g.l.Fault())
	}
	err := guard(func() error {
		return h.db.View(func(tx *bbolt.Tx) error {
			if b := tx.Bucket([]byte(logPrefix + g.name)); b != nil {
				return f(b)
			}
			return nil
		})
	})
	if err == nil {
		return nil
	}
	if errors.Is(err, errDamaged) {
		g.l.suspect.Store(h) // the next commit opens it anew, and looks at all of it
	}
	return fmt.Errorf("read log %s in ledger %s: %w", g.name, g.l.path, err)
}

// append puts one record into its log.
func (l *Ledger) append(tx *bbolt.Tx, r *queued, t *tally) error {
	name := []byte(logPrefix + r.log)
	b := tx.Bucket(name)
	if b == nil {
		var err error
		if b, err = tx.CreateBucket(name); err != nil {
			return err
		}
		t.records, t.bytes = 0, 0
	}
	b.FillPercent = 0.9 // keys only grow
	t.last = max(t.last, b.Sequence(), l.firstID()) + 1
	if err := b.SetSequence(t.last); err != nil {
		return err
	}
	r.id = t.last
	k := key(t.last)
	v := frame(k, append(binary.BigEndian.AppendUint64(nil, uint64(r.at.UnixNano())), r.data...))
	t.records++
	t.bytes += int64(len(k) + len(v))
	return b.Put(k, v)
}

// firstID is before all IDs of a new ledger. One that begins anew after a loss does not know which were given: milliseconds
// since 1970 are ahead of them, unless a thousand records a second were written all the time.
func (l *Ledger) firstID() uint64 {
	l.state.Lock()
	defer l.state.Unlock()
	if l.lost.File == "" {
		return 0
	}
	return uint64(max(0, l.lost.At.UnixMilli()))
}

// prune takes out what is beyond the bounds.
func (g *Log) prune(b *bbolt.Bucket, t *tally, now time.Time) error {
	var old [][]byte
	c := b.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		r, ok := record(k, v)
		if !ok {
			return damaged("record %x", k)
		}
		if t.records <= g.bounds.Records && t.bytes <= g.bounds.Bytes && now.Sub(r.At) <= g.bounds.Age {
			break
		}
		t.records--
		t.bytes -= int64(len(k) + len(v))
		old = append(old, slices.Clone(k))
	}
	for _, k := range old {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// count reads a whole log.
func count(b *bbolt.Bucket) (t tally, err error) {
	t.last = b.Sequence()
	err = b.ForEach(func(k, v []byte) error {
		r, ok := record(k, v)
		if !ok {
			return damaged("record %x", k)
		}
		t.records++
		t.bytes += int64(len(k) + len(v))
		t.last = max(t.last, r.ID)
		return nil
	})
	return t, err
}

func key(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// record reads a record, with a copy of its data.
func record(k, v []byte) (r Record, ok bool) {
	data, ok := unframe(k, v)
	if !ok || len(k) != 8 || len(data) < 8 {
		return r, false
	}
	at := time.Unix(0, int64(binary.BigEndian.Uint64(data))).UTC()
	return Record{ID: binary.BigEndian.Uint64(k), At: at, Data: slices.Clone(data[8:])}, true
}

// frame puts a checksum of key and value before a value: bbolt has none but for its two meta pages.
func frame(key, value []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, sum(key, value)), value...)
}

func unframe(key, framed []byte) ([]byte, bool) {
	if len(framed) < 4 {
		return nil, false
	}
	value := framed[4:]
	return value, binary.BigEndian.Uint32(framed) == sum(key, value)
}

func sum(key, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(key, table), table, value)
}
