package incident

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"spillway/agent/status"
)

// Width is how wide a story is at most, in columns, but for names that are wider.
const Width = 80

// Story tells an incident in words, tables and plots, with times in a zone.
func Story(i *Incident, zone *time.Location) string {
	s := story{i: i, zone: zone}
	s.head()
	s.paragraph(s.what())
	s.paragraph(s.memory())
	s.paragraph(s.node())
	s.paragraph(s.done())
	s.plots()
	s.triggers()
	s.thresholds()
	s.neighbours()
	s.actions()
	s.exits()
	s.decisions()
	return s.String()
}

type story struct {
	strings.Builder
	i    *Incident
	zone *time.Location
}

func (s *story) clock(t time.Time) string { return t.In(s.zone).Format("15:04:05.0") }

func (s *story) head() {
	i := s.i
	fmt.Fprintf(s, "%s: %s, %s\n", i.ID, i.Kind.words(), status.Clean(i.Subject.String()))
	if i.Subject.Container != "" {
		fmt.Fprintf(s, "container  %s\n", status.Clean(i.Subject.Container))
	}
	fmt.Fprintf(s, "node       %s\n", status.Clean(i.Node))
	fmt.Fprintf(s, "began      %s\n", i.Began.In(s.zone).Format(status.EventStamp))
	switch i.State {
	case Complete:
		fmt.Fprintf(s, "ended      %s, after %.0f s\n", i.Ended.In(s.zone).Format(status.EventStamp), i.Ended.Sub(i.Began).Seconds())
	case Broken:
		s.WriteString("ended      not known\n")
	default:
		s.WriteString("ended      not yet: what follows it is still being recorded\n")
	}
	if i.Note != "" {
		fmt.Fprintf(s, "note       %s\n", status.Clean(i.Note))
	}
}

func (k Kind) words() string {
	switch k {
	case OOMKill:
		return "OOM kill"
	case KubeletEviction:
		return "eviction by the kubelet"
	case Eviction:
		return "eviction by Spillway"
	case Critical:
		return "critical shortage of memory"
	}
	return status.Clean(string(k))
}

// paragraph prints words, wrapped.
func (s *story) paragraph(text string) {
	if text == "" {
		return
	}
	s.WriteByte('\n')
	column := 0
	for _, word := range strings.Fields(text) {
		n := len([]rune(word))
		switch {
		case column == 0:
		case column+1+n > Width:
			s.WriteByte('\n')
			column = 0
		default:
			s.WriteByte(' ')
			column++
		}
		s.WriteString(word)
		column += n
	}
	s.WriteByte('\n')
}

// sentence begins with a capital letter and ends with a full stop.
func sentence(text string) string {
	text = strings.TrimRight(status.Clean(text), ". ")
	if text == "" {
		return ""
	}
	if text[0] >= 'a' && text[0] <= 'z' {
		text = string(text[0]-'a'+'A') + text[1:]
	}
	return text + "."
}

func (s *story) what() string {
	i := s.i
	var parts []string
	if len(i.Triggers) > 0 {
		t := &i.Triggers[0]
		parts = append(parts, fmt.Sprintf("At %s: %s", s.clock(t.At), sentence(t.Text)))
	}
	if n := i.total(); n > 1 {
		var kinds []string
		for _, k := range Kinds {
			if c := i.Counts[k]; c > 0 {
				kinds = append(kinds, k.count(c))
			}
		}
		parts = append(parts, fmt.Sprintf("It was the first of %d things that belong together: %s.", n, strings.Join(kinds, ", ")))
	}
	return strings.Join(parts, " ")
}

func (i *Incident) total() int {
	n := 0
	for _, c := range i.Counts {
		n += c
	}
	return n
}

func (k Kind) count(n int) string {
	one, many := "OOM kill", "OOM kills"
	switch k {
	case KubeletEviction:
		one, many = "eviction by the kubelet", "evictions by the kubelet"
	case Eviction:
		one, many = "eviction by Spillway", "evictions by Spillway"
	case Critical:
		one, many = "critical verdict", "critical verdicts"
	}
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// memory tells limit, usage and slope of the pods.
func (s *story) memory() string {
	var parts []string
	for n := range s.i.Pods {
		p := &s.i.Pods[n]
		who := status.Clean(p.Subject.String())
		if p.QoS != "" {
			who += " (" + status.Clean(p.QoS) + ")"
		}
		limit := "had no limit that is known"
		if p.Limit != nil {
			limit = "had a limit of " + bytesOf(*p.Limit)
			if p.LimitOf != "" && p.LimitOf != "pod" {
				limit += " (" + status.Clean(p.LimitOf) + ")"
			}
		}
		if p.Request != nil {
			limit += " and a request of " + bytesOf(*p.Request)
		}
		text := who + " " + limit
		if v, ok := at(&p.Series, "workingSet"); ok {
			text += ", and used " + bytesOf(uint64(max(0, v))<<10)
			if a, ok := at(&p.Series, "anon"); ok {
				text += ", " + bytesOf(uint64(max(0, a))<<10) + " of it anonymous"
			}
		} else {
			text += "; what it used was not read"
		}
		text += "."
		var slopes []string
		for _, sl := range p.Slopes {
			slopes = append(slopes, fmt.Sprintf("%s/s over %s", signedSize(sl.BytesPerSecond), window(sl.WindowSeconds)))
		}
		if len(slopes) > 0 {
			text += " Without page cache it grew by " + strings.Join(slopes, ", ") + "."
		} else {
			text += " How it grew is not known."
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, " ")
}

func (s *story) node() string {
	p := &s.i.Pressure
	text := "The node was at level " + p.Level
	if p.Reason != "" {
		text += " (" + status.Clean(p.Reason) + ")"
	}
	if p.MarginBytes != nil {
		text += fmt.Sprintf(", %s from %s", signedSize(float64(*p.MarginBytes)), status.Clean(p.Signal))
	} else {
		text += ", its margin not known"
	}
	if p.UsedPercent != nil {
		text += fmt.Sprintf(", %.1f %% used", *p.UsedPercent)
	}
	if p.ETASeconds != nil {
		text += fmt.Sprintf(", %.1f s to go at %s/s, cause %s", *p.ETASeconds, signedSize(p.SlopeBytes), status.Clean(p.Cause))
	} else {
		text += ", with no end in sight"
	}
	text += "."
	if l := s.i.Lowest; l != nil {
		text += fmt.Sprintf(" The smallest margin was %s, at %s.", signedSize(float64(l.Bytes)), s.clock(l.At))
	}
	if a := s.i.Afterwards; a != nil {
		text += " When it was over the level was " + a.Level
		if a.MarginBytes != nil {
			text += fmt.Sprintf(" and the margin %s", signedSize(float64(*a.MarginBytes)))
		}
		text += "."
	}
	return text
}

// maxTold is how many of the things that one has done the words name; the list has all.
const maxTold = 2

// done tells what Spillway and the kubelet did, in short.
func (s *story) done() string {
	own, others := s.did(Spillway), s.did(Kubelet)
	var text string
	switch {
	case own != "":
		text = "Spillway did " + own
	case len(s.i.Decisions) > 0:
		d := &s.i.Decisions[len(s.i.Decisions)-1]
		text = "Spillway looked at the pods and evicted nobody: " + sentence(d.Reason)
	case s.i.Pressure.Level == "calm" || s.i.Pressure.Level == "alert":
		text = "Spillway had no cause to act: the level " + s.i.Pressure.Level + " evicts nobody."
		if len(s.i.Triggers) > 0 && s.i.Triggers[0].Own {
			text += " A pod at its own limit takes nothing from the others."
		}
	default:
		text = "Spillway did nothing."
	}
	if others != "" {
		text += " The kubelet did " + others
	}
	return text
}

// did names what somebody did, "" when it was nothing.
func (s *story) did(by string) string {
	var told []string
	n := 0
	for _, a := range s.i.Actions {
		if a.By != by {
			continue
		}
		if n++; n <= maxTold {
			told = append(told, fmt.Sprintf("%s of %s (%s)", a.What, status.Clean(a.Pod), strings.TrimRight(status.Clean(a.Text), ".")))
		}
	}
	if n == 0 {
		return ""
	}
	if n > maxTold {
		told = append(told, fmt.Sprintf("and %d more", n-maxTold))
	}
	return fmt.Sprintf("%s: %s.", plural(n, "thing", "things"), strings.Join(told, ", "))
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// window prints a time in whole minutes or seconds.
func window(seconds float64) string {
	if seconds >= 60 {
		return fmt.Sprintf("%.0f min", seconds/60)
	}
	return fmt.Sprintf("%.0f s", seconds)
}

// at returns the column's value at the beginning of the incident: the newest that is not after it.
func at(s *Series, name string) (Value, bool) {
	values := s.Column(name)
	for n := len(values) - 1; n >= 0; n-- {
		if s.At[n] <= 0 && values[n] != None {
			return values[n], true
		}
	}
	return 0, false
}

// triggers lists what happened, when it was more than one thing.
func (s *story) triggers() {
	if s.i.total() < 2 {
		return
	}
	rows := [][]string{{"WHEN", "WHAT", "SUBJECT"}}
	for _, t := range s.i.Triggers {
		rows = append(rows, []string{s.clock(t.At), t.Kind.words(), t.Subject.String()})
	}
	s.table(rows, 0)
	if n := s.i.total() - len(s.i.Triggers); n > 0 {
		fmt.Fprintf(s, "and %d more\n", n)
	}
}

func (s *story) thresholds() {
	rows := [][]string{{"THRESHOLD", "KIND", "LIMIT", "AVAILABLE", "MARGIN"}}
	for _, t := range s.i.Pressure.Thresholds {
		kind := "soft"
		if t.Hard {
			kind = "hard"
		}
		rows = append(rows, []string{t.Signal, kind, signedOf(t.LimitBytes), signedOf(t.AvailableBytes), signedOf(t.MarginBytes)})
	}
	s.table(rows, 0)
}

func (s *story) neighbours() {
	rows := [][]string{{"NEIGHBOUR", "QOS", "WORKING SET", "GROWTH/S", "LIMIT", "PROTECTED"}}
	for _, n := range s.i.Neighbours {
		limit := "-"
		if n.Limit != nil {
			limit = bytesOf(*n.Limit)
		}
		rows = append(rows, []string{n.Namespace + "/" + n.Pod, n.QoS, bytesOf(n.WorkingSet), signedSize(n.Growth), limit, n.Protection})
	}
	s.table(rows, 0)
}

func (s *story) actions() {
	rows := [][]string{{"WHEN", "BY", "WHAT", "POD", "CAME OF IT"}}
	for _, a := range s.i.Actions {
		rows = append(rows, []string{s.clock(a.At), a.By, a.What, a.Pod, a.Text})
	}
	s.table(rows, 4)
}

func (s *story) decisions() {
	rows := [][]string{{"WHEN", "DECISION", "STATE", "REASON"}}
	for _, d := range s.i.Decisions {
		reason := d.Reason
		if d.Victim != "" {
			reason = d.Victim + ": " + reason
		}
		rows = append(rows, []string{s.clock(d.At), d.ID, d.State, reason})
	}
	s.table(rows, 3)
}

// table prints rows with a head, when there is more than the head. Where the line would be too wide, the column that may be long
// gives way: the last one goes on in the next line, another one is cut.
func (s *story) table(rows [][]string, long int) {
	if len(rows) < 2 {
		return
	}
	widths := make([]int, len(rows[0]))
	for r, row := range rows {
		for c, cell := range row {
			cell = status.Clean(cell)
			if cell == "" {
				cell = "-"
			}
			rows[r][c] = cell
			widths[c] = max(widths[c], len([]rune(cell)))
		}
	}
	sum := 2 * (len(widths) - 1)
	for _, w := range widths {
		sum += w
	}
	if sum > Width {
		widths[long] = max(20, widths[long]-(sum-Width))
	}
	s.WriteByte('\n')
	for _, row := range rows {
		for c, cell := range row {
			runes := []rune(cell)
			if len(runes) > widths[c] && c == long && c == len(row)-1 {
				indent := 0
				for _, w := range widths[:c] {
					indent += w + 2
				}
				s.hang(cell, indent, widths[c])
				continue
			}
			if len(runes) > widths[c] {
				cell = string(runes[:widths[c]-1]) + "…"
			}
			s.WriteString(cell)
			if c < len(row)-1 {
				s.WriteString(strings.Repeat(" ", widths[c]-len([]rune(cell))+2))
			}
		}
		s.WriteByte('\n')
	}
}

// hang prints the words of a last cell over as many lines as it takes, each so far to the right as the first.
func (s *story) hang(text string, indent, width int) {
	column := 0
	for _, word := range strings.Fields(text) {
		n := len([]rune(word))
		if column > 0 && column+1+n > width {
			s.WriteString("\n" + strings.Repeat(" ", indent))
			column = 0
		} else if column > 0 {
			s.WriteByte(' ')
			column++
		}
		s.WriteString(word)
		column += n
	}
}

func bytesOf(n uint64) string { return status.Size(float64(n)) }

func signedSize(b float64) string { return status.Size(b) }

func signedOf(v *int64) string {
	if v == nil {
		return "unknown"
	}
	return status.Size(float64(*v))
}

// Who acts.
const (
	Spillway = "spillway"
	Kubelet  = "kubelet"
)

// Line is the sentence for a list of events.
func (i *Incident) Line() string {
	text := ""
	if len(i.Triggers) > 0 {
		text = i.Triggers[0].Text
	}
	if n := i.total(); n > 1 {
		var kinds []string
		for _, k := range Kinds {
			if c := i.Counts[k]; c > 0 {
				kinds = append(kinds, k.count(c))
			}
		}
		text += " (" + strings.Join(kinds, ", ") + ")"
	}
	return text
}

// Covers reports whether a thing that happened to a pod, or for an empty uid to a cgroup, is part of the incident.
func (i *Incident) Covers(at time.Time, s Subject) bool {
	ended := i.Ended
	if ended.IsZero() {
		ended = i.Began.Add(Longest)
	}
	if at.Before(i.Began.Add(-10*time.Second)) || at.After(ended) {
		return false
	}
	return slices.ContainsFunc(i.Triggers, func(t Trigger) bool {
		return t.Subject.UID == s.UID && t.Subject.Cgroup == s.Cgroup && (s.UID != "" || s.Cgroup != "")
	})
}
