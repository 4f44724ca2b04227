package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"go.etcd.io/bbolt"
)

func TestCheckPages(t *testing.T) {
	good := filled(t)
	used, err := checkPages(bytes.NewReader(good), int64(len(good)))
	if err != nil || used < 20_000 || used > int64(len(good)) {
		t.Errorf("%d bytes used of %d, %v", used, len(good), err)
	}
	failing := errors.New("EIO")
	if _, err := checkPages(broken{failing}, int64(len(good))); !errors.Is(err, failing) || errors.Is(err, errDamaged) {
		t.Errorf("a disk that cannot be read: %v", err)
	}
}

type broken struct{ err error }

func (b broken) ReadAt([]byte, int64) (int, error) { return 0, b.err }

// harmless are space that is lost, and a meta page that was cut while the other one holds: the next commit writes it.
var harmless = regexp.MustCompile("unreachable unfreed|Page expected to be: [01],|page [01]: has unexpected type")

// What checkPages lets through must not make bbolt fall over: no panic and no fault on any goroutine, whatever is read or
// written.
func FuzzCheckPages(f *testing.F) {
	good := filled(f)
	// Each four bytes of edits are a page, a place in it (two bytes), and what is there then; end is where the file ends.
	f.Add([]byte{}, len(good))
	f.Add([]byte{}, 16384)
	for page := range len(good) / 4096 {
		for _, at := range []int{0, 8, 10, 12, 16, 20, 24, 28, 40, 4090} {
			f.Add([]byte{byte(page), byte(at >> 8), byte(at), 0xFF}, len(good))
		}
	}
	f.Fuzz(func(t *testing.T, edits []byte, end int) {
		data := bytes.Clone(good)
		for ; len(edits) >= 4; edits = edits[4:] {
			data[(int(edits[0])*4096+int(edits[1])<<8+int(edits[2]))%len(data)] = edits[3]
		}
		for page := range 2 { // a meta page that only lacks its checksum
			if meta := data[page*4096+pageHeader:]; len(edits) == 1 {
				sum := fnv.New64a()
				sum.Write(meta[:metaSize-8])
				binary.NativeEndian.PutUint64(meta[metaSize-8:], sum.Sum64())
			}
		}
		if end > 0 && end < len(data) {
			data = data[:end]
		}
		if _, err := checkPages(bytes.NewReader(data), int64(len(data))); err != nil {
			if !errors.Is(err, errDamaged) {
				t.Errorf("%v is not called damage", err)
			}
			return
		}
		name := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		h, err := database(file)
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		if err := guard(func() error {
			return h.db.View(func(tx *bbolt.Tx) error {
				for err := range tx.Check() {
					if !harmless.MatchString(err.Error()) {
						t.Errorf("bbolt says: %v", err)
					}
				}
				return nil
			})
		}); err != nil {
			t.Errorf("check: %v", err)
		}
		if err := guard(func() error {
			return h.db.Update(func(tx *bbolt.Tx) error {
				b, err := tx.CreateBucketIfNotExists([]byte("fuzz"))
				if err != nil {
					return err
				}
				return b.Put([]byte("k"), make([]byte, 10_000))
			})
		}); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := h.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}
