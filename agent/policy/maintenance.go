package policy

import (
	"fmt"
	"strings"
)

// littlePart is the part of a maintenance need under which a release is not worth an eviction.
const littlePart = 0.01

const whyLittle = "its release is under a hundredth of what is missing"

// little says why a pod does not bring a maintenance need nearer, "" when it does.
func (in *Input) little(c *Candidate) string {
	if r := c.Reading.Release; r == 0 || float64(r) < littlePart*float64(in.Need.target()) {
		return whyLittle
	}
	return ""
}

// chooseNext fills Set for maintenance: the first of the fewest pods that meet the need together, at most MaxRound, or the best
// ranked where no such few do. One pod at a time: the next decision sees what it gave, and the time is there. Nobody caused
// anything, so that growth opens no gate (nobody is Leader or Grower), and an innocent pod may go although it is not enough
// alone. Protections, history, refusals and the rule against small pods are those of every decision.
func (d *Decision) chooseNext(in *Input) {
	if len(d.Victims) == 0 {
		return
	}
	s := search{need: &in.Need, pods: d.Pods, leader: -1}
	next := d.Victims[0]
	if few := s.smallest(d.Victims, 1, MaxRound); few != nil {
		next = few[0]
	}
	d.Set = []int{next}
	d.settle(in)
}

// nextReason says who goes for maintenance and what is missing after that.
func (d *Decision) nextReason(in *Input, open int) string {
	var b strings.Builder
	c := &d.Pods[d.Set[0]]
	fmt.Fprintf(&b, "%s ranks %d of %d candidates with score %.1f and gives back %.1f MiB", c.Pod.Key(), c.Rank, open, c.Score, float64(c.Reading.Release)/(1<<20))
	switch {
	case d.Covered && d.Set[0] != d.Victims[0]:
		b.WriteString(", the first that is enough alone")
	case d.Covered:
		b.WriteString(", which is enough")
	default:
		fmt.Fprintf(&b, "; %.1f MiB are still missing after that", float64(d.Missing)/(1<<20))
	}
	b.WriteString(c.note(in))
	return b.String()
}
