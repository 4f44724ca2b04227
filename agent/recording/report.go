package recording

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"spillway/agent/policy"
	"spillway/agent/status"
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
			p.line("%*s  was: %s (changed by: %s)", len(at), "", s.Was.text(), s.rule())
		}
		if s.Other != nil && s.Recorded.differs(s.Other) {
			p.line("%*s  other: %s", len(at), "", s.Other.text())
		}
	}
	p.score(e, "", e.Score)
	if e.OtherScore != nil && !sameScore(e.Score, e.OtherScore) {
		p.score(e, "other: ", e.OtherScore)
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

// sameScore reports whether two scores have the same would-be evictions at the same moments.
func sameScore(a, b *status.Observe) bool {
	return a.Text() == b.Text() && slices.EqualFunc(a.Newest, b.Newest, func(x, y status.WouldEvict) bool {
		return x.At.Equal(y.At) && x.UID == y.UID && x.Verdict == y.Verdict
	})
}

// score prints what became of would-be evictions.
func (p *printer) score(e *Episode, who string, o *status.Observe) {
	if o.WouldEvict == 0 && who == "" {
		return
	}
	p.line("            %s%s", who, o.Text())
	for i := range o.Newest {
		w := &o.Newest[len(o.Newest)-1-i]
		p.line("%+8.1f s  %swould evict %s/%s: %s", w.At.Sub(e.Begin).Seconds(), who, status.Clean(w.Namespace), status.Clean(w.Pod), status.Clean(w.Words()))
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

// rule names the rule by which a decision of an older recording is another one today.
func (s *Step) rule() string {
	was, now := s.Was, &s.Recorded
	switch {
	case now.Decision == policy.StateStandBy:
		return "only the cause is evicted, and Spillway stands by where it may not be"
	case was.Victims != "" && now.Decision == "":
		return "lead times and bounds: the level is " + now.Level + " at this moment now"
	case was.Victims != "" && now.Victims != "":
		return "only pods with a real part in the growth are ranked"
	case was.Victims != "":
		return "before critical only a pod is evicted whose part in the growth is borne out by what it gained in the last minute"
	case now.Victims != "":
		return "no cooldown, autoscaler or missing room holds a pod with a real part in the growth"
	}
	return "the states of a decision are told apart otherwise"
}
