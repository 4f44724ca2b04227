package curve

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sample() *Curve {
	return &Curve{
		Header: Header{Name: "redis-save", Application: "Redis", What: "saves", End: Stays, Program: "redis 7", Command: "redis-server --save ''", Kernel: "Linux 6", Source: "cgroup v1"},
		Points: []Point{
			{At: 0, Anon: 10 * Unit, Active: Unit},
			{At: 100 * time.Millisecond, Anon: 12*Unit + Unit/3, Active: Unit},
			{At: 200 * time.Millisecond, Anon: 12 * Unit, Active: Unit, Other: -3},
			{At: 300 * time.Millisecond, Anon: 12 * Unit, Active: Unit},
			{At: 400*time.Millisecond + 300*time.Microsecond, Anon: 7*Unit - 1, Shmem: 2 * Unit, Inactive: 5 * Unit, Other: Unit},
		},
	}
}

// TestRoundTrip: what is written is read again, rounded, without readings between two like them.
func TestRoundTrip(t *testing.T) {
	var b bytes.Buffer
	if err := sample().Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := Read(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want := sample()
	want.Points = []Point{
		{At: 0, Anon: 10 * Unit, Active: Unit},
		{At: 100 * time.Millisecond, Anon: 12 * Unit, Active: Unit},
		{At: 300 * time.Millisecond, Anon: 12 * Unit, Active: Unit},
		{At: 400 * time.Millisecond, Anon: 7 * Unit, Shmem: 2 * Unit, Inactive: 5 * Unit, Other: Unit},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if got.Seconds() != 0.4 || got.Points[3].Held() != 9*Unit {
		t.Errorf("lasts %v s, holds %d at its end", got.Seconds(), got.Points[3].Held())
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, spoil := range map[string]func(c *Curve){
		"its command":   func(c *Curve) { c.Command = "a\nb" },
		"its program":   func(c *Curve) { c.Program = "" },
		"end":           func(c *Curve) { c.End = "later" },
		"the time goes": func(c *Curve) { c.Points[2].At = 50 * time.Millisecond; c.Points[2].Anon = 0 },
		"two or more":   func(c *Curve) { c.Points = c.Points[:1] },
	} {
		c := sample()
		spoil(c)
		var b bytes.Buffer
		if err := c.Write(&b); err == nil || !strings.Contains(err.Error(), name) || b.Len() > 0 {
			t.Errorf("%s: %v, %d bytes written", name, err, b.Len())
		}
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	if err := sample().Write(&b); err != nil {
		f.Fatal(err)
	}
	head := format + "\nname: n\napplication: a\nwhat: w\nend: done\nprogram: p\ncommand: c\nkernel: k\nsource: s\n\n"
	for _, body := range []string{"0 1 2 3 4 5\n1 0 0 0 0 0\n", "0 1\n", "0 -1 0 0 0 0\n", "0 9999999999 0 0 0 0\n", "x 0 0 0 0 0\n", "0 0 0 0 0 0\n0 0 0 0 0 0\n"} {
		f.Add([]byte(head + body))
	}
	f.Add([]byte(format))
	f.Add([]byte{})
	if _, err := Read(b.Bytes()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Read(pack(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "read curve") {
				t.Errorf("the error does not say what was read: %v", err)
			}
			return
		}
		for i := range c.Points {
			if i > 0 && c.Points[i].At <= c.Points[i-1].At {
				t.Errorf("point %d is not later than the one before", i)
			}
			for _, v := range c.Points[i].amounts() {
				if *v < 0 {
					t.Errorf("point %d: %d bytes", i, *v)
				}
			}
		}
	})
}
