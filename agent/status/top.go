package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// The orders of pods in Top.
const (
	ByRank   = "rank" // who would go first; the protected ones after them
	ByMemory = "memory"
	ByGrowth = "growth"
	ByScore  = "score"
	ByName   = "name"
)

// TopOrders are all of them.
var TopOrders = []string{ByRank, ByMemory, ByGrowth, ByScore, ByName}

// TopView is what somebody wants to see of a Status.
type TopView struct {
	Order    string // default ByRank
	Selected string // UID of the pod that is marked; empty, or one that is gone: the first
	Text     string // shown in the place of the pods, such as an explanation
	Fault    string // why there is nothing newer
	Keys     string // last line
	Colour   bool   // mark by escape sequences as well
}

// least is a screen on which every part still shows something.
const (
	leastWidth  = 40
	leastHeight = 12
)

// Top draws s on a screen of so many columns and lines, at least 40 by 12. No line is longer.
func Top(s *Status, v *TopView, width, height int) string {
	c := &canvas{width: max(width, leastWidth), height: max(height, leastHeight), colour: v.Colour}
	p := &s.Pressure
	level := strings.ToUpper(p.Level)
	if c.colour {
		switch p.Level {
		case "evict", "critical":
			level = "\x1b[1;31m" + level + "\x1b[0m"
		case "alert":
			level = "\x1b[1;33m" + level + "\x1b[0m"
		}
	}
	c.line("%s  %s  %s  used %s  margin %s to %s", level, Clean(s.Node), s.Mode, percent(p.UsedPercent), signed(p.MarginBytes), orNone(p.Signal))
	c.line("ETA %s  slope %s/s  lead time %.0f s  stall %s  sampled every %.3g s", secs(p.ETASeconds), size(p.SlopeBytes), p.LeadSeconds, orNone(stalls(p.Stalls)), s.Loop.IntervalSeconds)
	c.line("%s", bar(p.UsedPercent, c.width))
	var margins []string
	for _, t := range p.Thresholds {
		if t.Hard && t.MarginBytes != nil {
			margins = append(margins, fmt.Sprintf("%s %s", t.Signal, signed(t.MarginBytes)))
		}
	}
	c.line("margins  %s", orNone(strings.Join(margins, "  ")))
	c.line("growth/s  %s  cause %s", orNone(growth(p.Growth)), orNone(p.Cause))
	if len(s.Decisions) > 0 {
		d := &s.Decisions[0]
		c.line("decision  %s %s %s %s", d.At.Local().Format(time.TimeOnly), d.State, Clean(d.Victim), Clean(d.Reason))
	}
	if e := &s.Evictions; e.Forbidden != "" || e.LastHour > 0 {
		c.line("evictions  %d of %d in the last hour  %s", e.LastHour, e.HourlyCap, Clean(e.Forbidden))
	}
	var degraded []string
	for _, src := range s.Sources {
		if src.State == Degraded {
			degraded = append(degraded, src.Name)
		}
	}
	if len(degraded) > 0 {
		c.line("degraded  %s", strings.Join(degraded, ", "))
	}
	if v.Fault != "" {
		c.line("no news since %s: %s", s.At.Local().Format(time.TimeOnly), Clean(v.Fault))
	}
	c.line("")
	if v.Text != "" {
		for line := range strings.Lines(v.Text) {
			c.line("%s", strings.TrimRight(line, "\n"))
		}
	} else {
		c.pods(s, v)
	}
	return c.finish(v.Keys)
}

// Rows returns the pods of s in an order.
func Rows(s *Status, order string) []Pod {
	pods := slices.Clone(s.Pods)
	last := func(rank int) int { // protected pods come last
		if rank == 0 {
			return 1 << 30
		}
		return rank
	}
	memory := func(p *Pod) uint64 { return orZero(p.WorkingSetBytes) }
	slices.SortStableFunc(pods, func(a, b Pod) int {
		name := cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		switch order {
		case ByMemory:
			return cmp.Or(cmp.Compare(memory(&b), memory(&a)), name)
		case ByGrowth:
			return cmp.Or(cmp.Compare(orZero(b.GrowthBytes), orZero(a.GrowthBytes)), cmp.Compare(memory(&b), memory(&a)), name)
		case ByScore:
			return cmp.Or(cmp.Compare(orZero(b.Score), orZero(a.Score)), name)
		case ByName:
			return name
		}
		return cmp.Or(cmp.Compare(last(a.Rank), last(b.Rank)), cmp.Compare(memory(&b), memory(&a)), name)
	})
	return pods
}

func orZero[T uint64 | float64](v *T) T {
	if v == nil {
		return 0
	}
	return *v
}

// column is one of the table of pods; a width of 0 takes a share of what is left.
type column struct {
	head  string
	width int
	right bool
	cell  func(*Pod) string
}

// columns are those that fit.
func columns(width int) []column {
	out := []column{
		{"RANK", 4, true, func(p *Pod) string {
			if p.Rank == 0 {
				return "-"
			}
			return fmt.Sprint(p.Rank)
		}},
		{"POD", 0, false, func(p *Pod) string { return Clean(p.who()) }},
		{"MEMORY", 9, true, func(p *Pod) string { return bytesOf(p.WorkingSetBytes) }},
		{"GROWTH/S", 9, true, func(p *Pod) string { return floatSize(p.GrowthBytes) }},
	}
	if width >= 140 {
		out = append(out,
			column{"REQUEST", 9, true, func(p *Pod) string { return size(float64(p.RequestBytes)) }},
			column{"LIMIT", 9, true, func(p *Pod) string { return bytesOf(p.LimitBytes) }},
			column{"QOS", 10, false, func(p *Pod) string { return orNone(p.QoS) }})
	}
	return append(out,
		column{"SCORE", 5, true, func(p *Pod) string { return score(p.Score) }},
		column{"PROTECTED", 0, false, func(p *Pod) string {
			if width < 140 {
				return orNone(p.Protection)
			}
			return orNone(Clean(protection(*p)))
		}})
}

// canvas collects lines that fit a screen.
type canvas struct {
	width, height int
	colour        bool
	lines         []string
}

func (c *canvas) line(format string, args ...any) {
	c.lines = append(c.lines, cut(fmt.Sprintf(format, args...), c.width))
}

// pods draws the table with the selected pod in sight.
func (c *canvas) pods(s *Status, v *TopView) {
	pods := Rows(s, v.Order)
	cols := columns(c.width)
	left, shares := c.width-2, 0
	for _, col := range cols {
		left -= col.width + 1
		if col.width == 0 {
			shares++
		}
	}
	for i := range cols {
		if cols[i].width == 0 { // the pod's name gets two thirds
			cols[i].width = max(left/3, 8)
			if cols[i].head == "POD" {
				cols[i].width = max(left-left/3, 12)
			}
		}
	}
	row := func(cell func(column) string) string {
		var b strings.Builder
		for _, col := range cols {
			text := cut(cell(col), col.width)
			pad := strings.Repeat(" ", max(0, col.width-utf8.RuneCountInString(text)))
			if col.right {
				text = pad + text
			} else {
				text += pad
			}
			b.WriteString(" " + text)
		}
		return b.String()
	}
	c.line(" %s", strings.TrimRight(row(func(col column) string { return col.head }), " "))
	selected := max(0, slices.IndexFunc(pods, func(p Pod) bool { return p.UID == v.Selected }))
	room := max(1, c.height-len(c.lines)-1)
	first := 0
	if selected >= room {
		first = selected - room + 1
	}
	for i := first; i < min(len(pods), first+room); i++ {
		mark := " "
		if i == selected {
			mark = ">"
		}
		text := strings.TrimRight(cut(mark+row(func(col column) string { return col.cell(&pods[i]) }), c.width), " ")
		if i == selected && c.colour {
			text = "\x1b[7m" + text + "\x1b[0m"
		}
		c.lines = append(c.lines, text)
	}
	if len(pods) == 0 {
		c.line("  no pods are known on this node")
	}
}

// finish cuts what does not fit above the last line.
func (c *canvas) finish(keys string) string {
	if n := c.height - 1; len(c.lines) > n {
		c.lines = c.lines[:n]
	}
	for keys != "" && len(c.lines) < c.height-1 {
		c.lines = append(c.lines, "")
	}
	if keys != "" {
		c.lines = append(c.lines, cut(keys, c.width))
	}
	return strings.Join(c.lines, "\n")
}

// cut shortens text to so many columns; escape sequences take none.
func cut(text string, width int) string {
	columns := 0
	escape := false
	for i, r := range text {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r != 'm'
		default:
			if columns++; columns > width {
				end := text[:i]
				if strings.Contains(end, "\x1b[") {
					end += "\x1b[0m"
				}
				return end
			}
		}
	}
	return text
}

// bar draws how much is used.
func bar(used *float64, width int) string {
	if used == nil {
		return "[" + strings.Repeat("?", width-2) + "]"
	}
	n := int(min(max(*used, 0), 100) / 100 * float64(width-2))
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", width-2-n) + "]"
}
