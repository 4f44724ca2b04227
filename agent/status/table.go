package status

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// clock is how moments are printed: in the time zone of who reads, with its offset.
func clock(t time.Time) string { return t.Local().Format(time.RFC3339) }

// WriteTable prints s for people, with at most so many pods, 0: all of them. Text that comes from pods is quoted where it holds
// control characters.
func WriteTable(w io.Writer, s *Status, pods int) error {
	p := &s.Pressure
	if s.Evictions.Paused {
		fmt.Fprintln(w, "PAUSED: the pause switch stops all evictions")
	}
	fmt.Fprintf(w, "level %s   %s\n", strings.ToUpper(p.Level), Clean(p.Reason))
	fmt.Fprintf(w, "node %s   spillway %s   mode %s   cgroup %s   up %s\n", Clean(s.Node), s.Version, s.Mode, s.CgroupV, s.At.Sub(s.StartedAt).Round(time.Second))
	fmt.Fprintf(w, "used %s   margin %s to %s   slope %s/s   ETA %s   lead time %.0f s   cause %s\n",
		percent(p.UsedPercent), signed(p.MarginBytes), orNone(p.Signal), size(p.SlopeBytes), secs(p.ETASeconds), p.LeadSeconds, p.Cause)
	if t := s.Evictions.Timing; t != nil {
		fmt.Fprintf(w, "an eviction takes   %s\n", t.line())
	}
	if len(p.Stalls) > 0 {
		fmt.Fprintf(w, "memory stall   %s\n", stalls(p.Stalls))
	}
	if p.Risk != nil {
		fmt.Fprintf(w, "history of %s   %s\n", time.Duration(p.Risk.SpanSeconds*float64(time.Second)).Round(time.Minute), risk(p.Risk))
	}
	if text := growth(p.Growth); text != "" {
		fmt.Fprintf(w, "growth/s over 10 s   %s\n", text)
	}
	if s.Observe != nil {
		fmt.Fprintf(w, "observe: %s\n", s.Observe.Text())
	}
	fmt.Fprintf(w, "sampling every %.3g s   %d of %d sweeps late   %d wake-ups\n", s.Loop.IntervalSeconds, s.Loop.LateSweeps, s.Loop.Sweeps, s.Loop.Wakes)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nTHRESHOLD\tKIND\tLIMIT\tAVAILABLE\tMARGIN\tSOURCE")
	for _, h := range p.Thresholds {
		kind := "soft"
		switch {
		case h.Hard:
			kind = "hard"
		case h.GraceLeft != nil:
			kind = fmt.Sprintf("soft, met, %.0f s left", *h.GraceLeft)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", h.Signal, kind, signed(h.LimitBytes), signed(h.AvailableBytes), signed(h.MarginBytes), Clean(h.Source))
	}
	fmt.Fprintln(t, "\nSOURCE\tSTATE\tDETAIL")
	for _, src := range s.Sources {
		fmt.Fprintf(t, "%s\t%s\t%s\n", src.Name, src.State, Clean(src.Detail))
	}
	writeLadder(t, &s.OOMWatch)
	writeCluster(t, s.Pods)
	if len(s.OOMKills) > 0 {
		fmt.Fprintln(t, "\nOOM KILL\tPOD\tCONTAINER\tPROCESS\tANON\tLIMIT\tOF\tOUT OF MEMORY\tKNOWN BY\tSEEN BY")
		for _, k := range s.OOMKills {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", clock(k.At), Clean(k.who()), Clean(orNone(k.Container)), Clean(k.what()), bytesOf(k.AnonBytes),
				bytesOf(k.LimitBytes), k.LimitOf, Clean(k.domain()), orNone(k.DomainKnownBy), orNone(k.Source))
		}
	}
	writeExits(t, s.Exits)
	if len(s.Incidents) > 0 {
		fmt.Fprintln(t, "\nINCIDENT\tAT\tSUBJECT\tWHAT")
		for _, e := range s.Incidents {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", Clean(e.ID), clock(e.At), Clean(e.Subject), Clean(e.Text))
		}
	}
	if len(s.Decisions) > 0 {
		fmt.Fprintln(t, "\nDECISION\tAT\tLEVEL\tSTATE\tVICTIM\tREASON")
		for _, d := range s.Decisions {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, clock(d.At), d.Level, d.State, Clean(orNone(d.Victim)), Clean(d.Reason))
		}
		if newest := &s.Decisions[0]; newest.KubeletChoice != "" {
			fmt.Fprintf(t, "\nwithout Spillway\t%s\n", Clean(newest.KubeletChoice))
		}
	}
	writeWould(t, s.Observe)
	if len(s.Evictions.Outcomes) > 0 {
		fmt.Fprintln(t, "\nEVICTION\tAT\tPOD\tSTATE\tANSWER\tEXPECTED\tMEASURED")
		for _, o := range s.Evictions.Outcomes {
			state := o.State
			if o.DryRun {
				state += " (dry run)"
			}
			if o.ShortenedAt != nil {
				state += ", cut short"
			}
			fmt.Fprintf(t, "%s\t%s\t%s/%s\t%s\t%s %d\t%s\t%s\n", o.DecisionID, clock(o.AskedAt), Clean(o.Namespace), Clean(o.Pod), state, o.Answer, o.Code, size(float64(o.ExpectedBytes)), bytesOf(o.MeasuredBytes))
		}
	}
	if len(s.Reclaims.Attempts) > 0 {
		fmt.Fprintln(t, "\nRECLAIM OF\tAT\tSTATE\tWANTED\tBACK\tTIME\tLASTING\tREAD AGAIN")
		for i, r := range s.Reclaims.Attempts {
			if i == maxReclaims {
				break
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", Clean(r.Pod), clock(r.At), Clean(r.state()), size(float64(r.WantBytes)), size(float64(r.BackBytes)),
				time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond), signed(r.LastingBytes), pages(r.RefaultPages))
		}
	}
	if len(s.Brakes) > 0 {
		fmt.Fprintln(t, "\nBRAKE OF\tSINCE\tSTATE\tHIGH\tPREVIOUS\tIN USE")
		for i := range s.Brakes {
			b := &s.Brakes[i]
			previous := bytesOf(b.PreviousBytes)
			if b.PreviousBytes == nil && b.HighBytes != nil {
				previous = "none"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", Clean(b.Pod), clock(b.At), Clean(b.state()), bytesOf(b.HighBytes), previous, bytesOf(b.UsageBytes))
		}
	}
	if len(s.Evictions.Replacements) > 0 {
		fmt.Fprintln(t, "\nEVICTED\tAT\tREPLACEMENT")
		for i := range s.Evictions.Replacements {
			r := &s.Evictions.Replacements[i]
			fmt.Fprintf(t, "%s/%s\t%s\t%s\n", Clean(r.Namespace), Clean(r.Pod), clock(r.EvictedAt), Clean(r.Words()))
		}
	}
	if s.Evictions.Once != "" {
		fmt.Fprintf(t, "\nmaintenance run %s\n", Clean(s.Evictions.Once))
	}
	if s.Evictions.Forbidden != "" {
		fmt.Fprintf(t, "\nno eviction may start now: %s\n", Clean(s.Evictions.Forbidden))
	}
	if len(s.Groups) > 0 {
		fmt.Fprintln(t, "\nCGROUP\tUSAGE\tWORKING SET")
		for _, g := range s.Groups {
			fmt.Fprintf(t, "%s\t%s\t%s\n", Clean(g.Path), bytesOf(g.UsageBytes), bytesOf(g.WorkingSetBytes))
		}
	}
	if len(s.Pods) > 0 {
		fmt.Fprintln(t, "\nRANK\tPOD\tQOS\tWORKING SET\tGROWTH/S\tREQUEST\tLIMIT\tSCORE\tOOM RISK\tPROTECTED")
		shown := s.Pods
		if pods > 0 {
			shown = shown[:min(pods, len(shown))]
		}
		for _, pod := range shown {
			rank := "-"
			if pod.Rank > 0 {
				rank = strconv.Itoa(pod.Rank)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", rank, Clean(pod.who()), pod.QoS, bytesOf(pod.WorkingSetBytes),
				floatSize(pod.GrowthBytes), size(float64(pod.RequestBytes)), bytesOf(pod.LimitBytes), score(pod.Score), risk(pod.Risk), Clean(protection(pod)))
		}
		if more := len(s.Pods) - len(shown); more > 0 {
			fmt.Fprintf(t, "%d more (--pods 0 shows all)\n", more)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// maxReclaims is how many of the newest reclaims are shown: a reader's cache is reclaimed every second.
const maxReclaims = 5

// Words says what came of it, with the reason.
func (r *Reclaim) Words() string { return r.state() }

// Words says what came of it, with the reason.
func (b *Brake) Words() string { return b.state() }

// state is what came of it, with the reason.
func (r *Reclaim) state() string {
	if r.Why != "" {
		return r.State + ": " + r.Why
	}
	return r.State
}

func (b *Brake) state() string {
	if b.Why != "" {
		return b.State + ": " + b.Why
	}
	return b.State
}

func pages(n *int64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprintf("%d pages", *n)
}

// stalls prints the windows of one kind after the other: some 200ms 1.0 % 1s 0.5 %, full ...
func stalls(all []Stall) string {
	var b strings.Builder
	kind := ""
	for _, s := range all {
		if s.Kind != kind {
			if kind != "" {
				b.WriteString(", ")
			}
			kind = s.Kind
			b.WriteString(kind)
		}
		fmt.Fprintf(&b, " %s %.1f %%", time.Duration(s.WindowSeconds*float64(time.Second)), 100*s.Ratio)
	}
	return b.String()
}

// writeCluster prints what the cluster says about evicting the pods that it was asked for.
func writeCluster(w io.Writer, pods []Pod) {
	head := "\nCANDIDATE\tTHE CLUSTER SAYS\n"
	for i := range pods {
		for _, line := range pods[i].Cluster {
			fmt.Fprintf(w, "%s%s/%s\t%s\n", head, Clean(pods[i].Namespace), Clean(pods[i].Name), Clean(line))
			head = ""
		}
	}
}

// risk prints what the history says: high 2.1 %/h r2 0.97.
func risk(r *Risk) string {
	if r == nil {
		return "-"
	}
	level := "low"
	if r.High {
		level = "high"
	}
	return fmt.Sprintf("%s %.2f %%/h r2 %.2f", level, r.PercentPerHour, r.R2)
}

// growth prints the parts that are known.
func growth(parts []Growth) string {
	var known []string
	for _, p := range parts {
		if p.BytesPerSecond != nil {
			known = append(known, p.Part+" "+size(*p.BytesPerSecond))
		}
	}
	return strings.Join(known, "   ")
}

// WriteSamples prints readings, one line each.
func WriteSamples(w io.Writer, s Samples) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if len(s.Minutes) > 0 {
		fmt.Fprintln(t, "BOOT\tPEAK WORKING SET\tHELD FLOOR")
		for _, m := range s.Minutes {
			fmt.Fprintf(t, "%.0f s\t%s\t%s\n", m.BootSeconds, bytesOf(m.PeakWorkingSet), bytesOf(m.HeldFloor))
		}
		return flush(t)
	}
	if len(s.Pod) > 0 {
		fmt.Fprintln(t, "BOOT\tWORKING SET\tUSAGE\tANON\tSHMEM\tACTIVE FILE\tSWAP")
		for _, p := range s.Pod {
			fmt.Fprintf(t, "%.3f s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.BootSeconds, bytesOf(p.WorkingSetBytes), bytesOf(p.UsageBytes), bytesOf(p.AnonBytes), bytesOf(p.ShmemBytes), bytesOf(p.ActiveFileBytes), bytesOf(p.SwapBytes))
		}
		return flush(t)
	}
	fmt.Fprintln(t, "BOOT\tROOT WORKING SET\tACTIVE FILE\tPODS WORKING SET\tPODS ACTIVE FILE\tMEM AVAILABLE")
	for _, n := range s.Node {
		fmt.Fprintf(t, "%.3f s\t%s\t%s\t%s\t%s\t%s\n", n.BootSeconds, bytesOf(n.RootWorkingSet), bytesOf(n.RootActiveFile), bytesOf(n.PodsWorkingSet), bytesOf(n.PodsActiveFile), bytesOf(n.MemAvailable))
	}
	return flush(t)
}

func flush(t *tabwriter.Writer) error {
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write samples: %w", err)
	}
	return nil
}

// writeLadder prints how OOM kills are seen, where that is not all as it should be.
func writeLadder(w io.Writer, o *OOMWatch) {
	missing := slices.ContainsFunc(o.Rungs, func(r OOMRung) bool { return r.State == "missing" })
	if !missing && o.Lost == 0 && o.Missed == 0 {
		return
	}
	fmt.Fprintln(w, "\nOOM KILLS BY\tSTATE\tDETAIL\tWHAT TO DO")
	for _, r := range o.Rungs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Name, r.State, Clean(r.Detail), orNone(Clean(r.Remedy)))
	}
	if o.Lost > 0 || o.Missed > 0 {
		fmt.Fprintf(w, "%d reported one by one, %d only counted, %d events lost as the agent did not keep up\n", o.Kills, o.Missed, o.Lost)
	}
}

// who is the UID, as the cgroup has it, of a pod whose name nobody told.
func (p *Pod) who() string {
	if p.Name == "" {
		return p.UID
	}
	return p.Namespace + "/" + p.Name
}

func (k *OOMKill) who() string {
	if k.Pod == "" {
		return orNone(k.Cgroup)
	}
	return k.Namespace + "/" + k.Pod
}

// what names the victims.
func (k *OOMKill) what() string {
	switch {
	case k.PID == 0:
		return fmt.Sprintf("%d not seen", k.Victims)
	case k.Victims > 1:
		return fmt.Sprintf("%s (%d) and %d more", orNone(k.Process), k.PID, k.Victims-1)
	}
	return fmt.Sprintf("%s (%d)", orNone(k.Process), k.PID)
}

// domain is whose memory had run out.
func (k *OOMKill) domain() string {
	switch {
	case k.Domain == "cgroup":
		return k.DomainCgroup
	case k.Domain == "":
		return "unknown"
	}
	return k.Domain
}

func protection(p Pod) string {
	if p.Protection == "" {
		return p.Reason
	}
	return p.Protection + ": " + p.Reason
}

// Clean quotes text that would disturb a terminal or a line-oriented log: names and messages come from outside.
func Clean(s string) string {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func percent(v *float64) string {
	if v == nil {
		return "unknown"
	}
	return fmt.Sprintf("%.1f %%", *v)
}

func secs(v *float64) string {
	if v == nil {
		return "none"
	}
	return fmt.Sprintf("%.1f s", *v)
}

func score(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f", *v)
}

func signed(v *int64) string {
	if v == nil {
		return "unknown"
	}
	return size(float64(*v))
}

func bytesOf(v *uint64) string {
	if v == nil {
		return "-"
	}
	return size(float64(*v))
}

func floatSize(v *float64) string {
	if v == nil {
		return "-"
	}
	return size(*v)
}

func size(b float64) string {
	switch a := max(b, -b); {
	case a >= 1<<30:
		return fmt.Sprintf("%.2f GiB", b/(1<<30))
	case a >= 1<<20:
		return fmt.Sprintf("%.1f MiB", b/(1<<20))
	case a >= 1<<10:
		return fmt.Sprintf("%.0f KiB", b/(1<<10))
	}
	return fmt.Sprintf("%.0f B", b)
}
