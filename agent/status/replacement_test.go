package status

import "testing"

func TestWords(t *testing.T) {
	for want, r := range map[string]Replacement{
		"not asked for yet":                                                     {},
		"shop/web-5 Running on node-b after 4 s":                                {State: "running", Replacement: "web-5", Node: "node-b", AfterSeconds: ptr(4.2)},
		"shop/web-5 Running on node-a (this node) after 900 s":                  {State: "running", Replacement: "web-5", Node: "node-a", SameNode: true, AfterSeconds: ptr(900.0), Late: true},
		"shop/web-5 Pending: 0/2 nodes are available":                           {State: "unscheduled", Replacement: "web-5", Message: "0/2 nodes are available"},
		"none yet: exceeded quota: mem (for more than 15 min)":                  {State: "none-yet", Message: "exceeded quota: mem", Late: true},
		"none wanted: its controller is gone":                                   {State: "not-wanted", Message: "its controller is gone"},
		"not known: pods is forbidden":                                          {State: "unknown", Message: "pods is forbidden"},
		"shop/web-5 not running on node-b (addresses): no IP addresses":         {State: "addresses", Replacement: "web-5", Node: "node-b", Message: "no IP addresses"},
		"shop/web-5 not running on node-b (starting): not ready: probe is late": {State: "starting", Replacement: "web-5", Node: "node-b", Message: "not ready: probe is late"},
	} {
		r.Namespace = "shop"
		if got := r.Words(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
