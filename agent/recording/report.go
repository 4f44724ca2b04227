package recording

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// WriteReport prints a report for people: each episode with what was decided when, and what came out otherwise.
func WriteReport(w io.Writer, r *Report) error {
	p := &printer{w: w}
	for i := range r.Episodes {
		p.episode(&r.Episodes[i])
	}
	for _, d := range r.Damages {
		p.line("damaged: %v; what follows up to the next episode is left out", d)
	}
	return p.err
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	_, err := fmt.Fprintf(p.w, format+"\n", args...)
	p.err = errors.Join(p.err, err)
}

func (p *printer) episode(e *Episode) {
	cut := ""
	if !e.Complete {
		cut = ", cut off"
	}
	p.line("%s  %s, %s%s (node %s, agent %s, mode %s)", e.Begin.UTC().Format(time.RFC3339), e.End.Sub(e.Begin).Round(time.Millisecond*100), count(e.Looks, "verdict"), cut, e.Header.Node, e.Header.Agent, e.Header.Mode)
	for i := range e.Steps {
		s := &e.Steps[i]
		at := fmt.Sprintf("%+8.1f s", s.At.Sub(e.Begin).Seconds())
		p.line("%s  %s", at, s.Recorded.text())
		if s.Was != nil {
			p.line("%*s  was: %s", len(at), "", s.Was.text())
		}
		if s.Other != nil && s.Recorded.differs(s.Other) {
			p.line("%*s  other: %s", len(at), "", s.Other.text())
		}
	}
	all := e.Looks + e.Rankings + e.Decisions + e.Plans
	if e.Older {
		p.line("            recorded by an older agent: %d of %s are otherwise by the rules of this one (was: what it decided)", e.Changed, count(e.Decisions, "decision"))
	} else if e.Different == 0 {
		p.line("            all %d answers are the recorded ones (%s)", all, strings.Join(e.counts(), ", "))
	} else {
		p.line("            %d of %d answers are not the recorded ones; first %s", e.Different, all, e.First)
	}
}

// counts says how many answers of each kind there are; a plan for page cache is a rare one.
func (e *Episode) counts() []string {
	out := []string{count(e.Looks, "verdict"), count(e.Rankings, "ranking"), count(e.Decisions, "decision")}
	if e.Plans > 0 {
		out = append(out, count(e.Plans, "plan")+" for page cache")
	}
	return out
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func (s *State) text() string {
	out := s.Level
	if s.Decision == "" {
		return out + ": " + s.Reason
	}
	out += ": " + s.Decision
	if s.Victims != "" {
		out += " " + s.Victims
	}
	if s.Held != "" {
		out += ", held: " + s.Held
	} else {
		out += ": " + s.Why
	}
	if s.Without != "" {
		out += "; without Spillway: " + s.Without
	}
	return out
}
