package status

import (
	"fmt"
	"io"
	"time"
)

// maxExits is how many of the newest are printed; JSON has them all, with their evidence.
const maxExits = 8

// Exit is one container that ended with a code other than 0, and why.
type Exit struct {
	At          time.Time  `json:"at"` // when it ended, as its source tells
	StartedAt   *time.Time `json:"startedAt"`
	Namespace   string     `json:"namespace"`
	Pod         string     `json:"pod"`
	PodUID      string     `json:"podUid"`
	Container   string     `json:"container"`
	ContainerID string     `json:"containerId,omitempty"`
	Restarts    int32      `json:"restarts"` // of the container before this run
	Code        int32      `json:"code"`
	Reason      string     `json:"reason"`    // of the kubelet or the runtime
	Source      string     `json:"source"`    // who told of the end: pod status, runtime
	Cause       string     `json:"cause"`     // see triage.Cause
	Certainty   string     `json:"certainty"` // known, likely, unknown
	LimitOf     string     `json:"limitOf,omitempty"`
	LimitBytes  *uint64    `json:"limitBytes"` // null: none, or not known
	How         string     `json:"how"`        // how the cause is known
	Evidence    []string   `json:"evidence"`
	Next        string     `json:"next"` // what to look at next
}

// Words are cause and certainty, with the limit that was reached.
func (x *Exit) Words() string {
	text := x.Cause
	if x.LimitOf != "" {
		text += ", limit of: " + x.LimitOf
		if x.LimitBytes != nil {
			text += " (" + bytesOf(x.LimitBytes) + ")"
		}
	}
	if x.Certainty == "likely" {
		text += " (likely)"
	}
	return text
}

func writeExits(w io.Writer, exits []Exit) {
	for i := range exits {
		x := &exits[i]
		switch i {
		case 0:
			fmt.Fprintln(w, "\nEXIT\tPOD\tCONTAINER\tCODE\tCAUSE\tNEXT")
		case maxExits:
			fmt.Fprintf(w, "%d more\t\t\t\t\t\n", len(exits)-maxExits)
			return
		}
		fmt.Fprintf(w, "%s\t%s/%s\t%s\t%d\t%s\t%s\n", clock(x.At), Clean(x.Namespace), Clean(x.Pod), Clean(x.Container), x.Code, Clean(x.Words()), Clean(x.Next))
	}
}
