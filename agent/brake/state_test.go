package brake

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/cgroup"
)

func TestUndoThatFails(t *testing.T) {
	k := newKernel()
	play(t, k, Options{}, func(r *rig) {
		a := r.set("a")
		k.mu.Lock()
		k.resErr = errors.New("EIO")
		k.mu.Unlock()
		r.pass(100*time.Millisecond, false, "x")
		if a.State != Releasing || !a.Open() || a.Err == nil || !strings.Contains(r.m.Fault(), "shop/a") || len(r.listed()) != 1 {
			t.Errorf("attempt %+v, fault %q", a, r.m.Fault())
		}
		b := r.set("b") // others are braked meanwhile
		if b.State != Braking {
			t.Errorf("attempt %+v", b)
		}
		time.Sleep(20 * time.Second)
		k.mu.Lock()
		k.resErr = nil
		k.mu.Unlock()
		r.pass(lastWait, false, "")
		if a.State != Released || a.Err != nil || r.m.Fault() != "" || k.high("/a") != cgroup.Unlimited || len(r.listed()) != 1 {
			t.Errorf("attempt %+v, fault %q, on disk %v", a, r.m.Fault(), r.listed())
		}
	})
}

// The next agent undoes what one left that could not, or was killed.
func TestCrash(t *testing.T) {
	file := &ledgertest.Document{}
	k := newKernel()
	k.change("/a", func(f *Figures) { f.High = 5000 * mibi })
	play(t, k, Options{Store: file}, func(r *rig) {
		r.set("a")
		r.set("b")
		k.mu.Lock()
		k.resErr = errors.New("EIO") // its stop undoes nothing
		k.mu.Unlock()
	})
	if k.high("/a") != 1050*mibi || k.high("/b") != 132*mibi {
		t.Fatalf("memory.high %v and %v", k.high("/a"), k.high("/b"))
	}
	k.resErr = nil
	delete(k.groups, "/b")
	play(t, k, Options{Store: file, Off: "switched off"}, func(r *rig) {
		if all := r.m.Attempts(); len(all) != 2 || all[0].State != Releasing || !all[0].Crashed || !all[0].Open() {
			t.Errorf("attempts %+v", all)
		}
		r.drain()
		all := r.m.Attempts()
		if all[0].State != Released || all[1].State != Gone || k.high("/a") != 5000*mibi || len(r.listed()) != 0 {
			t.Errorf("attempts %+v %+v, memory.high %v", all[0], all[1], k.high("/a"))
		}
		if _, ok := r.m.Start(time.Now(), request("a")); ok {
			t.Error("started although it is off")
		}
	})
	writes := k.writes
	play(t, k, Options{Store: file}, func(r *rig) { r.drain() })
	if k.writes != writes {
		t.Error("undone once more")
	}
}

// A crash between disk and write: nothing is there to undo.
func TestCrashBeforeTheWrite(t *testing.T) {
	file := &ledgertest.Document{}
	k := newKernel()
	s := state{Version: stateVersion, Brakes: []saved{{UID: "a", Pod: "shop/a", Path: "/a", ID: 7}, {UID: "b", Pod: "shop/b", Path: "/b", ID: 8}}}
	var err error
	if file.Data, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	k.change("/b", func(f *Figures) { f.High = 1 * mibi }) // of another cgroup: its id is 7
	play(t, k, Options{Store: file}, func(r *rig) {
		r.drain()
		if a, b := r.m.Attempts()[0], r.m.Attempts()[1]; a.State != Released || b.State != Gone || k.writes != 0 || k.high("/b") != 1*mibi {
			t.Errorf("attempts %+v %+v, %d writes", a, b, k.writes)
		}
	})
}

func TestStatesThatCannotBeUsed(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "cut": `{"version":1,"bra`, "another version": `{"version":2}`, "no version": `{}`, "another kind": `[]`} {
		t.Run(name, func(t *testing.T) {
			file := &ledgertest.Document{Data: []byte(text)}
			play(t, newKernel(), Options{Store: file}, func(r *rig) {
				if string(file.Moved) != text || r.m.SetAside() != ledgertest.Aside {
					t.Errorf("set aside %q as %q", file.Moved, r.m.SetAside())
				}
				if a := r.set("a"); a.State != Braking {
					t.Errorf("attempt %+v", a)
				}
			})
		})
	}
	t.Run("the store was set aside", func(t *testing.T) {
		play(t, newKernel(), Options{Store: &ledgertest.Document{Lost: "ledger.bad"}}, func(r *rig) {
			if a := r.set("a"); a.State != Braking || r.m.SetAside() != "ledger.bad" {
				t.Errorf("attempt %+v, set aside %q", a, r.m.SetAside())
			}
		})
	})
	t.Run("the store cannot be read", func(t *testing.T) {
		m, err := New(Options{Kernel: newKernel(), Store: &ledgertest.Document{LoadErr: errors.New("EIO")}})
		if err != nil {
			t.Fatal(err)
		}
		if m.Fault() != "read brake state: EIO" || m.Never() == "" || m.SetAside() != "" {
			t.Errorf("fault %q, never %q", m.Fault(), m.Never())
		}
	})
}
