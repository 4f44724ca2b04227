package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
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
		"too large":       append(bytes.Clone(good), make([]byte, maxFile)...),
		"another program's": foreign(t, func(*bbolt.Options) {}, func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucket([]byte("x"))
			return err
		}),
		"another program's, without a list of free pages": foreign(t, func(o *bbolt.Options) { o.NoFreelistSync = true }, func(tx *bbolt.Tx) error { return nil }),
		"no format": foreign(t, func(*bbolt.Options) {}, func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucket(bucketAbout)
			return err
		}),
	}
	for size := 512; size < len(good); size += 4096 {
		// behind the last page that is in use nothing is missing
		if _, err := checkPages(bytes.NewReader(good[:size]), int64(size)); err != nil {
			cases[fmt.Sprintf("cut to %d", size)] = good[:size]
		}
	}
	if len(cases) < 15 {
		t.Fatalf("only %d cases", len(cases))
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, FileName)
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			life(t, Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))}, func(l *Ledger) {
				name := l.SetAside()
				if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, data) || !strings.HasPrefix(name, file+".bad-") || !strings.Contains(log.String(), name) {
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
