package ledgertest

import (
	"testing"

	"spillway/agent/ledger"
)

// TestLikeTheLedger: the document in memory answers as one of the ledger does.
func TestLikeTheLedger(t *testing.T) {
	l, err := ledger.Open(ledger.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, d := range map[string]interface {
		Load() (data []byte, lost string, err error)
		Save(data []byte) error
		SetAside() (string, error)
	}{"memory": new(Document), "ledger": l.Document("a")} {
		t.Run(name, func(t *testing.T) {
			want := func(when, text string) {
				t.Helper()
				if data, lost, err := d.Load(); err != nil || lost != "" || string(data) != text || (data == nil) != (text == "") {
					t.Errorf("%s: %q, lost %q, %v; want %q", when, data, lost, err, text)
				}
			}
			want("at first", "")
			text := []byte("one")
			if err := d.Save(text); err != nil {
				t.Fatal(err)
			}
			text[0] = 'x'
			want("after a save", "one")
			data, _, _ := d.Load()
			data[0] = 'x'
			want("after a change of what was loaded", "one")
			if name, err := d.SetAside(); err != nil || name == "" {
				t.Errorf("set aside as %q, %v", name, err)
			}
			want("after it was set aside", "")
		})
	}
}
