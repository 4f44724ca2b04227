package status

import (
	"bytes"
	"strings"
	"testing"
)

// What an eviction takes is shown with what it rests on, and not at all where no eviction is made.
func TestTimingLine(t *testing.T) {
	for _, tc := range []struct {
		timing *Timing
		want   string
	}{
		{nil, ""},
		{&Timing{CallSeconds: 1, CutSeconds: 3.5, BackBytes: 4 << 30, Calls: 2}, "an eviction takes   call 1s (usual)   cut by the API server alone 3.5s (usual)   memory back 4.00 GiB/s (usual)\n"},
		{&Timing{CallSeconds: 0.6149, Calls: 12, CallMeasured: true, CutSeconds: 1.102, Cuts: 3, CutMeasured: true, RuntimeStops: true, BackBytes: 3 << 29, Releases: 20, BackMeasured: true},
			"an eviction takes   call 610ms (12 measured)   cut by the runtime 1.1s (3 measured)   memory back 1.50 GiB/s (20 measured)\n"},
	} {
		var out bytes.Buffer
		if err := WriteTable(&out, &Status{Evictions: Evictions{Timing: tc.timing}}, 0); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); !strings.Contains(got, tc.want) || tc.timing == nil && strings.Contains(got, "an eviction takes") {
			t.Errorf("%s\nwant %q in it", got, tc.want)
		}
	}
}
