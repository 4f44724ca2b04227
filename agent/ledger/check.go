package ledger

import (
	"errors"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"
)

// openingSuffix is that of the file beside the ledger that has a byte for each opening that did not end. bbolt maps the ledger
// and its check follows what it finds there on a goroutine of its own, where a fault ends the process. After the second one the
// ledger counts as damaged; the first may be an agent that was killed.
const (
	openingSuffix = ".opening"
	maxDied       = 2
)

const maxFaults = 100 // that Check is heard out for

// errDamaged says that a file is not, or no longer, a ledger.
var errDamaged = errors.New("damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamaged, fmt.Sprintf(format, args...))
}

// begins counts an opening, ends takes the count back. A disk that takes no file does not keep the ledger from being read.
func (l *Ledger) begins() error {
	died := int64(0)
	if info, err := os.Stat(l.path + openingSuffix); err == nil {
		died = info.Size()
	}
	if died >= maxDied {
		return damaged("the agent ended %d times while it opened it", died)
	}
	_ = os.WriteFile(l.path+openingSuffix, make([]byte, died+1), 0o600)
	return nil
}

func (l *Ledger) ends() { os.Remove(l.path + openingSuffix) }

// readable reads a file once: what is an error here is a fault in the mapping.
func readable(f io.ReaderAt, size int64) error {
	_, err := io.Copy(io.Discard, io.NewSectionReader(f, 0, size))
	return err
}

// check looks at the pages of a file of that size and returns how many bytes of it are in use. It comes before any other walk:
// of those Check alone tells of a circle of pages.
func check(tx *bbolt.Tx, size int64) (used int64, err error) {
	if tx.Size() > size {
		return 0, damaged("it ends after %d of %d bytes", size, tx.Size())
	}
	// What Check does not see: a page that goes on beyond the end, which it follows for as long, and a free page that is listed
	// twice, lies beyond the end, or is the rest of another one.
	pageSize := int64(tx.DB().Info().PageSize)
	pages, free := int(tx.Size()/pageSize), 0
	for id := 2; id < pages; id++ {
		p, err := tx.Page(id)
		switch {
		case err != nil:
			return 0, err
		case p.Type == "free":
			free++
		case p.OverflowCount >= pages-id:
			return 0, damaged("page %d goes on for %d of %d pages", id, p.OverflowCount, pages)
		default:
			id += p.OverflowCount
		}
	}
	if listed := tx.DB().Stats().FreePageN; listed != free {
		return 0, damaged("%d free pages are listed, %d are there", listed, free)
	}
	faults := 0
	for fault := range tx.Check() {
		if err == nil {
			err = damaged("%v", fault)
		}
		if faults++; faults == maxFaults {
			break // of a circle there is no end; Check's goroutine stays where it is
		}
	}
	return int64(pages-free) * pageSize, err
}
