package pressure

import "fmt"

// The alert threshold that the usual use of the cluster's nodes gives: alertAbove percentage points over it, but no
// lower than leastAlert.
const (
	alertAbove = 10
	leastAlert = 70
)

// alertPercent returns the alert threshold in force: the configured one, or an earlier one where nodes are usually used
// far less. A node that leaves what is usual for its cluster is worth a look before it is full. A baseline that is no
// percentage changes nothing.
func (c *Config) alertPercent() float64 {
	if b := c.BaselinePercent; b > 0 { // a NaN is not
		return min(c.AlertPercent, max(leastAlert, b+alertAbove))
	}
	return c.AlertPercent
}

// alertUsed is the reason of an alert by use.
func (v *Verdict) alertUsed(c *Config) string {
	text := fmt.Sprintf("used %.1f %%", v.UsedPercent)
	if v.AlertPercent != c.AlertPercent {
		text += fmt.Sprintf(", alert at %.1f %% instead of %.1f %%: nodes of this cluster usually use %.1f %%", v.AlertPercent, c.AlertPercent, c.BaselinePercent)
	}
	return text
}
