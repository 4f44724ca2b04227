// Package curve is the file of a recorded growth curve: the memory of one cgroup over time, gzipped text of a few kilobytes.
// Command apps writes it, command decisions reads it.
package curve

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Unit is what amounts are rounded to. It is below what charge batches of the kernel make uncertain on any machine of four
// processors.
const Unit = 64 << 10

const format = "spillway-curve 1"

// fields are the amounts of a line, each as the difference to the line before.
const fields = "milliseconds, then anon, shmem, active file, inactive file, other, each in 64 KiB"

// Ends of a curve.
const (
	Done  = "done"  // its processes ended by themselves
	Stays = "stays" // a service that runs on at the level that it has reached or come back to
	Leak  = "leak"  // it grew until it was stopped
)

// Header says what was recorded.
type Header struct {
	Name        string // of the curve, such as redis-save
	Application string // such as Redis
	What        string // what it does, in a few words
	End         string // Done, Stays or Leak
	Program     string // with its version
	Command     string
	Kernel      string
	Source      string // what read the figures
}

// lines are the header's fields as they are written.
func (h *Header) lines() []struct {
	key   string
	value *string
} {
	return []struct {
		key   string
		value *string
	}{
		{"name", &h.Name}, {"application", &h.Application}, {"what", &h.What}, {"end", &h.End}, {"program", &h.Program}, {"command", &h.Command}, {"kernel", &h.Kernel},
		{"source", &h.Source},
	}
}

// Point is one reading, in bytes. Other is the working set without the rest: kernel memory and what memory.stat does not know yet.
type Point struct {
	At                                   time.Duration // from the curve's begin
	Anon, Shmem, Active, Inactive, Other int64
}

// Held is what the kernel cannot drop.
func (p *Point) Held() int64 { return p.Anon + p.Shmem }

// amounts are the point's figures as they are written.
func (p *Point) amounts() [5]*int64 {
	return [5]*int64{&p.Anon, &p.Shmem, &p.Active, &p.Inactive, &p.Other}
}

// Curve is a recording.
type Curve struct {
	Header
	Points []Point // oldest first, at least two
}

// Seconds is how long the curve lasts.
func (c *Curve) Seconds() float64 { return c.Points[len(c.Points)-1].At.Seconds() }

// round makes all amounts multiples of Unit, and all times whole milliseconds.
func (p Point) round() Point {
	p.At = p.At.Round(time.Millisecond)
	for _, v := range p.amounts() {
		*v = (*v + Unit/2) / Unit * Unit
		if *v < 0 { // Other is a difference, and may be by what memory.stat lags
			*v = 0
		}
	}
	return p
}

// same reports whether two points differ in their time only.
func (p Point) same(o Point) bool {
	p.At = o.At
	return p == o
}

// Write rounds the curve, leaves out readings between two like them, and writes it.
func (c *Curve) Write(out io.Writer) error {
	var text bytes.Buffer
	fmt.Fprintln(&text, format)
	for _, l := range c.lines() {
		if *l.value == "" || strings.ContainsAny(*l.value, "\n\r") {
			return fmt.Errorf("write curve %s: its %s is %q, want one line", c.Name, l.key, *l.value)
		}
		fmt.Fprintf(&text, "%s: %s\n", l.key, *l.value)
	}
	fmt.Fprintf(&text, "\n# %s; each as the difference to the line before\n", fields)
	var before Point
	for i := range c.Points {
		p := c.Points[i].round()
		if i > 0 && i < len(c.Points)-1 && p.same(c.Points[i-1].round()) && p.same(c.Points[i+1].round()) {
			continue
		}
		fmt.Fprint(&text, (p.At - before.At).Milliseconds())
		old := before.amounts()
		for j, v := range p.amounts() {
			fmt.Fprint(&text, " ", (*v-*old[j])/Unit)
		}
		fmt.Fprintln(&text)
		before = p
	}
	if _, err := Read(pack(text.Bytes())); err != nil { // what cannot be read back is told by its writer
		return fmt.Errorf("write curve %s: %w", c.Name, err)
	}
	if _, err := out.Write(pack(text.Bytes())); err != nil {
		return fmt.Errorf("write curve %s: %w", c.Name, err)
	}
	return nil
}

func pack(text []byte) []byte {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		panic(err) // the level is a constant
	}
	_, _ = z.Write(text) // a bytes.Buffer takes everything
	_ = z.Close()
	return b.Bytes()
}

// Bounds of what is read.
const (
	mostText   = 4 << 20
	mostPoints = 100_000
	mostAmount = 1 << 50
)

// Read reads what Write wrote.
func Read(data []byte) (*Curve, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read curve: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(z, mostText+1))
	if err != nil {
		return nil, fmt.Errorf("read curve: %w", err)
	}
	if len(text) > mostText {
		return nil, fmt.Errorf("read curve: more than %d bytes of text", mostText)
	}
	c := &Curve{}
	in := bufio.NewScanner(bytes.NewReader(text))
	n, body := 0, false
	for in.Scan() {
		line := in.Text()
		switch n++; {
		case n == 1:
			if line != format {
				return nil, fmt.Errorf("read curve: first line %q, want %q", line, format)
			}
		case line == "":
			body = true
		case strings.HasPrefix(line, "#"):
		case !body:
			if err := c.header(line); err != nil {
				return nil, fmt.Errorf("read curve: line %d: %w", n, err)
			}
		default:
			if err := c.point(line); err != nil {
				return nil, fmt.Errorf("read curve %s: line %d: %w", c.Name, n, err)
			}
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("read curve %s: %w", c.Name, err)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Curve) header(line string) error {
	key, value, ok := strings.Cut(line, ": ")
	if !ok {
		return fmt.Errorf("%q is no field of a header", line)
	}
	for _, l := range c.lines() {
		if l.key == key {
			*l.value = value
		}
	}
	return nil
}

// point adds what a line says.
func (c *Curve) point(line string) error {
	var p Point
	if n := len(c.Points); n > 0 {
		p = c.Points[n-1]
	}
	if len(c.Points) == mostPoints {
		return fmt.Errorf("more than %d points", mostPoints)
	}
	words := strings.Fields(line)
	amounts := p.amounts()
	if len(words) != 1+len(amounts) {
		return fmt.Errorf("%d numbers, want %d", len(words), 1+len(amounts))
	}
	for i, word := range words {
		v, err := strconv.ParseInt(word, 10, 32)
		if err != nil {
			return fmt.Errorf("number %d: %w", i+1, err)
		}
		if i == 0 {
			if v < 0 || v == 0 && len(c.Points) > 0 {
				return fmt.Errorf("the time goes back by %d ms", -v)
			}
			p.At += time.Duration(v) * time.Millisecond
			continue
		}
		if *amounts[i-1] += v * Unit; *amounts[i-1] < 0 || *amounts[i-1] > mostAmount {
			return fmt.Errorf("amount %d is %d bytes", i, *amounts[i-1])
		}
	}
	c.Points = append(c.Points, p)
	return nil
}

func (c *Curve) check() error {
	for _, l := range c.lines() {
		if *l.value == "" {
			return fmt.Errorf("read curve %s: no %s", c.Name, l.key)
		}
	}
	if !slices.Contains([]string{Done, Stays, Leak}, c.End) {
		return fmt.Errorf("read curve %s: end %q, want %q, %q or %q", c.Name, c.End, Done, Stays, Leak)
	}
	if len(c.Points) < 2 {
		return fmt.Errorf("read curve %s: %d points, want two or more", c.Name, len(c.Points))
	}
	return nil
}
