package policy

import (
	"fmt"
	"strings"
)

// whyJoins is why a pod that does not grow is never the next one of a round.
const whyJoins = "it has no part in the growth, and others are on their way out already"

// leaving returns how many victims of the present round are on their way out.
func (in *Input) leaving() int { return max(in.InFlight, 0) }

// joins reports whether the decision is about one more victim beside others.
func (in *Input) joins() bool { return in.leaving() > 0 }

// places returns how many pods the set may have: the round is shared with those on their way out.
func (in *Input) places() int { return in.limit() - in.leaving() }

// closed decides what victims on their way out decide alone, whoever else there is; false leaves it to the pods. It is
// asked when the need is not met, the credit of those victims included.
func (d *Decision) closed(in *Input) bool {
	switch {
	case !in.joins():
		return false
	case !in.Need.ByETA:
		d.State, d.Reason = StateNoNeed, "those on their way out have the time that a shortage by percentage gives"
	case in.places() <= 0:
		d.State, d.Missing = StateRound, in.Need.Missing(0, 0)
		d.Reason = fmt.Sprintf("round limit: %d of at most %d pods of this round are on their way out; %s", in.leaving(), in.limit(), in.Need.short(d.Missing, 0))
	default:
		return false
	}
	return true
}

// short says what is missing, and the growth that goes on after so many bytes per second of it were stopped.
func (n *Need) short(missing uint64, growth float64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%.1f MiB are still missing after that", float64(missing)/(1<<20))
	if n.ByETA && n.Slope-growth > 0 {
		fmt.Fprintf(&b, ", growth of %.1f MiB/s goes on", (n.Slope-growth)/(1<<20))
	}
	return b.String()
}
