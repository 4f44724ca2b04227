package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

// filled is the content of a ledger with documents and records.
func filled(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	l := begin(t, Options{Dir: dir})
	save(t, l, "a", "kept")
	save(t, l, "b", strings.Repeat("y", 20_000))
	var records []queued
	for i := range 300 {
		records = append(records, queued{log: "kills", at: time.Unix(int64(i), 0), data: []byte(fmt.Sprintf("%040d", i))})
	}
	if err := l.commit(nil, records); err != nil {
		t.Fatal(err)
	}
	l.Close()
	data, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// layout returns where the last page of a ledger ends, where the list of free pages is, and a branch page.
func layout(t testing.TB, data []byte) (end, free, branch int) {
	t.Helper()
	newest := uint64(0)
	for page := range 2 {
		meta := data[page*4096+16:]
		if txid := binary.NativeEndian.Uint64(meta[48:]); txid >= newest {
			newest, free, end = txid, int(binary.NativeEndian.Uint64(meta[32:]))*4096, int(binary.NativeEndian.Uint64(meta[40:]))*4096
		}
	}
	for branch = 8192; data[branch+8] != 1; branch += 4096 {
	}
	return end, free, branch
}

// foreign is a database that is none of ours.
func foreign(t testing.TB, change func(*bbolt.Options), fill func(*bbolt.Tx) error) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x")
	opts := &bbolt.Options{}
	change(opts)
	db, err := bbolt.Open(file, 0o600, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fill), db.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A file that cannot be used is set aside as it is, whatever is wrong with it, and a new ledger begins.
func TestFilesThatCannotBeUsed(t *testing.T) {
	good := filled(t)
	flip := func(at int, b byte) []byte {
		out := bytes.Clone(good)
		out[at] ^= b
		return out
	}
	cases := map[string][]byte{
		"empty": {}, "text": []byte(`{"version":1}` + "\n"), "noise": bytes.Repeat([]byte{0xA5, 7, 1}, 30_000), "zeros": make([]byte, 65536),
		"both meta pages": append(make([]byte, 8192), good[8192:]...),
		"a document":      flip(bytes.Index(good, []byte("kept")), 1),
		"a record":        flip(bytes.LastIndex(good, []byte("0299")), 1),
		"a log's name":    flip(bytes.LastIndex(good, []byte("log:kills"))+5, 1),
		"too large":       append(bytes.Clone(good), make([]byte, maxFile)...),
		"another program's": foreign(t, func(*bbolt.Options) {}, func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucket([]byte("x"))
			return err
		}),
		"no format": foreign(t, func(*bbolt.Options) {}, func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucket(bucketAbout)
			return err
		}),
	}
	end, free, branch := layout(t, good)
	for size := 512; size < end; size += 4096 {
		cases[fmt.Sprintf("cut to %d", size)] = good[:size]
	}
	// bbolt would write over pages that are in use, or far beyond the end.
	first := binary.NativeEndian.Uint64(good[free+16:])
	for name, id := range map[string]uint64{"in use": uint64(branch) / 4096, "a meta page": 0, "beyond the end": 5000, "beyond all": 1 << 60, "listed twice": first} {
		data := bytes.Clone(good)
		binary.NativeEndian.PutUint64(data[free+24:], id)
		cases["a free page that is "+name] = data
	}
	for name, at := range map[string]int{"the list of free pages": free, "a branch": branch} { // which bbolt would follow for as long
		data := bytes.Clone(good)
		binary.NativeEndian.PutUint32(data[at+12:], 1<<30)
		cases[name+" that goes on for 2^30 pages"] = data
	}
	const noList = "another program's, without a list of free pages" // into which bbolt writes one
	cases[noList] = foreign(t, func(o *bbolt.Options) { o.NoFreelistSync = true }, func(*bbolt.Tx) error { return nil })
	if binary.NativeEndian.Uint16(good[free+10:]) < 2 || len(cases) < 20 {
		t.Fatalf("%d cases; list of free pages % x", len(cases), good[free:free+64])
	}
	for what, data := range cases {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, FileName)
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			life(t, Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))}, func(l *Ledger) {
				name := l.SetAside()
				if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, data) && what != noList || !strings.HasPrefix(name, file+".bad-") || !strings.Contains(log.String(), name) {
					t.Fatalf("set aside as %q: %v; log %s", name, err, &log)
				}
				if data, lost, err := l.Document("a").Load(); data != nil || lost != name || err != nil {
					t.Errorf("load: %q, lost %q, %v", data, lost, err)
				}
				save(t, l, "a", "new")
				want(t, l, "a", "new")
			})
			life(t, Options{Dir: dir}, func(l *Ledger) { // a restart soon after does not know either what was in it
				want(t, l, "a", "new")
				if _, lost, err := l.Document("b").Load(); lost == "" || err != nil || l.SetAside() != "" {
					t.Errorf("lost %q, %v, set aside %q", lost, err, l.SetAside())
				}
				l.lost.At = l.lost.At.Add(-lostFor)
				want(t, l, "b", "")
			})
		})
	}
}

// A disk that cannot be read is no damage.
func TestReadable(t *testing.T) {
	if err := readable(bytes.NewReader(make([]byte, 9)), 9); err != nil {
		t.Error(err)
	}
	failing := errors.New("EIO")
	if err := readable(broken{failing}, 9); !errors.Is(err, failing) || errors.Is(err, errDamaged) {
		t.Errorf("%v", err)
	}
}

type broken struct{ err error }

func (b broken) ReadAt([]byte, int64) (int, error) { return 0, b.err }

// openOnce opens a ledger, says what is in it, and saves a document.
func openOnce(dir string) error {
	l, err := Open(Options{Dir: dir})
	if err != nil {
		return err
	}
	g, err := l.Log("kills", crashBounds)
	if err != nil {
		return err
	}
	data, lost, err := l.Document("a").Load()
	if err != nil {
		return err
	}
	records, err := g.Newest(1000)
	if err != nil {
		return err
	}
	for i, r := range records {
		if string(r.Data) != fmt.Sprintf("%040d", len(records)-1-i) {
			return fmt.Errorf("record %d: %q", i, r.Data)
		}
	}
	if err := l.Document("new").Save([]byte("1")); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(opened{l.SetAside(), lost, string(data), len(records)}); err != nil {
		return err
	}
	return l.Close()
}

type opened struct {
	Aside, Lost, A string
	Records        int
}

// start is one start of an agent; false: it died.
func start(t *testing.T, dir string) (o opened, log string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), openFolder+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		t.Fatalf("%s: no end after a minute", dir)
	}
	if err != nil {
		return o, stderr.String(), false
	}
	if err := json.Unmarshal(out, &o); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return o, stderr.String(), true
}

// Whatever is wrong in a file, the third start has a ledger: the one that was, or a new one that says so.
func TestRandomDamage(t *testing.T) {
	good := filled(t)
	end, _, _ := layout(t, good)
	random := rand.New(rand.NewPCG(1, 2))
	died, aside, same := 0, 0, 0
	for i := range 40 {
		data := bytes.Clone(good)
		for range 1 + i%3 {
			at := 8192 + random.IntN(end-8192) // behind the meta pages, of which one is enough
			if i%4 != 0 {                      // heads of pages and elements lead astray
				at = at/4096*4096 + at%200
			}
			data[at] ^= 1 << random.IntN(8)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, FileName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		for n := 0; ; n++ {
			o, log, ok := start(t, dir)
			switch {
			case !ok && n < maxDied:
				died++
				continue
			case !ok:
				t.Errorf("damage %d: dead at start %d: %.2000s", i, n, log)
			case o.Aside != "":
				aside++
				if got, err := os.ReadFile(o.Aside); err != nil || !bytes.Equal(got, data) || o.Lost != o.Aside || o.A != "" || o.Records != 0 {
					t.Errorf("damage %d: %+v, %v", i, o, err)
				}
			default:
				same++
				if o.A != "kept" || o.Records != 300 || o.Lost != "" {
					t.Errorf("damage %d: lost without a word: %+v", i, o)
				}
			}
			break
		}
		if o, log, ok := start(t, dir); !ok || o.Aside != "" {
			t.Errorf("damage %d: the start after it: %v, %+v, %.2000s", i, ok, o, log)
		}
	}
	t.Logf("%d set aside, %d as they were, %d starts died", aside, same, died)
	if aside < 10 || same < 1 {
		t.Errorf("%d set aside, %d as they were", aside, same)
	}
}

// A key that lies outside of all memory ends the process, twice. The third start sets the file aside.
func TestDeathWhileOpening(t *testing.T) {
	data := filled(t)
	_, _, branch := layout(t, data)
	binary.NativeEndian.PutUint32(data[branch+16+16:], 1<<30) // where the second element's key is
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, FileName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	for range maxDied {
		if o, log, ok := start(t, dir); ok || !strings.Contains(log, "fault") {
			t.Fatalf("it did not die: %+v, %s", o, log)
		}
	}
	o, log, ok := start(t, dir)
	if got, err := os.ReadFile(o.Aside); !ok || err != nil || !bytes.Equal(got, data) || o.Lost != o.Aside {
		t.Fatalf("%+v, %v, %s", o, err, log)
	}
	if o, _, ok := start(t, dir); !ok || o.Aside != "" || o.Lost == "" {
		t.Errorf("then: %v, %+v", ok, o)
	}
}

// An agent that was killed while it opened a good file loses nothing.
func TestKilledWhileOpening(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, FileName), filled(t), 0o600),
		os.WriteFile(filepath.Join(dir, FileName+openingSuffix), []byte{0}, 0o600)); err != nil {
		t.Fatal(err)
	}
	l := begin(t, Options{Dir: dir})
	want(t, l, "a", "kept")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left beside it: %v, %v", left, err)
	}
}

// The newer meta page was being written when the power went: the commit before it holds.
func TestCutMetaPage(t *testing.T) {
	good := filled(t)
	for page := range 2 {
		dir := t.TempDir()
		data := bytes.Clone(good)
		clear(data[page*4096+40 : page*4096+80])
		if err := os.WriteFile(filepath.Join(dir, FileName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		l := begin(t, Options{Dir: dir})
		want(t, l, "a", "kept")
		if l.SetAside() != "" || l.Fault() != "" {
			t.Errorf("set aside %q, fault %q", l.SetAside(), l.Fault())
		}
	}
}

// A ledger of a newer version stays as it is, and nothing can be kept.
func TestNewerFormat(t *testing.T) {
	dir := t.TempDir()
	l := begin(t, Options{Dir: dir})
	save(t, l, "a", "1")
	if err := l.file.Load().db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketAbout).Put(keyFormat, []byte("2"))
	}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	file := filepath.Join(dir, FileName)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	l = begin(t, Options{Dir: dir})
	if _, _, err := l.Document("a").Load(); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("load: %v", err)
	}
	if err := l.Document("a").Save([]byte("2")); !errors.Is(err, ErrNewer) || l.Fault() == "" || l.SetAside() != "" || l.Stats().WriteErrors != 1 {
		t.Errorf("save: %v, fault %q, set aside %q, %+v", err, l.Fault(), l.SetAside(), l.Stats())
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("it was changed: %v", err)
	}

	// The older file is put back: what could not be read at the start can be, once the ledger has looked again.
	older := filepath.Join(t.TempDir(), FileName)
	o := begin(t, Options{Dir: filepath.Dir(older)})
	save(t, o, "a", "3")
	o.Close()
	if err := os.Rename(older, file); err != nil {
		t.Fatal(err)
	}
	if err := l.commit(nil, nil); err != nil {
		t.Fatal(err)
	}
	if data, _, err := l.Document("a").Load(); err != nil || string(data) != "3" {
		t.Errorf("then it has %q, %v", data, err)
	}
	if data, _, err := l.Document("b").Load(); err != nil || data != nil {
		t.Errorf("and of what nobody saved %q, %v", data, err)
	}
}

// Somebody removes the file, or its folder, under a ledger that is open: a write makes it anew with all documents, and no ID
// of a record comes again.
func TestRemoved(t *testing.T) {
	for name, remove := range map[string]func(dir string) error{
		"the file":   func(dir string) error { return os.Remove(filepath.Join(dir, FileName)) },
		"the folder": os.RemoveAll,
		"replaced by another": func(dir string) error {
			file := filepath.Join(dir, FileName)
			return errors.Join(os.Rename(file, file+".old"), os.WriteFile(file, []byte("x"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			l := begin(t, Options{Dir: dir})
			save(t, l, "a", "1")
			if err := l.commit(nil, []queued{{log: "kills", at: time.Unix(1, 0), data: []byte("k")}}); err != nil {
				t.Fatal(err)
			}
			if err := remove(dir); err != nil {
				t.Fatal(err)
			}
			save(t, l, "b", "2")
			if err := l.commit(nil, []queued{{log: "kills", at: time.Unix(2, 0), data: []byte("k")}}); err != nil {
				t.Fatal(err)
			}
			l.Close()
			again := begin(t, Options{Dir: dir})
			want(t, again, "a", "1")
			want(t, again, "b", "2")
			g, err := again.Log("kills", Bounds{10, 1 << 20, time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := g.Newest(9); err != nil || len(got) != 1 || got[0].ID < 2 {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// The file is cut or overwritten under its mapping: reads fault, and are errors; the next write begins a new file with all
// documents.
func TestDamageWhileOpen(t *testing.T) {
	for name, hurt := range map[string]func(file string) error{
		"cut": func(file string) error { return os.Truncate(file, 8192) },
		"overwritten": func(file string) error {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(bytes.Repeat([]byte{0xA5}, 8192), 8192)
			for at := int64(8192); err == nil && at < 1<<20; at += 8192 {
				_, err = f.WriteAt(bytes.Repeat([]byte{0xA5}, 8192), at)
			}
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			dir := t.TempDir()
			life(t, Options{Dir: dir}, func(l *Ledger) {
				g, err := l.Log("kills", Bounds{1000, 4 << 20, 100 * 365 * 24 * time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				for i := range 500 {
					g.Append(time.Now(), []byte(fmt.Sprintf("%0200d", i)), nil)
				}
				save(t, l, "a", "1")
				if err := hurt(l.Path()); err != nil {
					t.Fatal(err)
				}
				if got, err := g.Newest(1000); err == nil || !strings.Contains(err.Error(), "damaged") {
					t.Errorf("read %d records: %v", len(got), err)
				}
				save(t, l, "b", "2")
				g.Append(time.Now(), []byte("after"), nil)
				save(t, l, "b", "3")
				if got, err := g.Newest(9); err != nil || len(got) != 1 || got[0].ID <= 500 {
					t.Errorf("%+v, %v", got, err)
				}
				if l.SetAside() == "" || l.Fault() != "" {
					t.Errorf("set aside %q, fault %q", l.SetAside(), l.Fault())
				}
			})
			l := begin(t, Options{Dir: dir})
			want(t, l, "a", "1")
			want(t, l, "b", "3")
		})
	}
}
