package status

import (
	"strings"
	"testing"
	"time"
)

func TestExitsTable(t *testing.T) {
	limit := uint64(64 << 20)
	s := &Status{}
	for range maxExits {
		s.Exits = append(s.Exits, Exit{At: time.Unix(0, 0).UTC(), Namespace: "shop", Pod: "cart", Container: "main", Code: 137, Cause: "oom", Certainty: "known", LimitOf: "container", LimitBytes: &limit, Next: "Look\tthere."})
	}
	s.Exits = append(s.Exits, Exit{Cause: "application", Certainty: "likely"}, Exit{})
	var b strings.Builder
	if err := WriteTable(&b, s, 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1970-01-01T00:00:00Z", "shop/cart", "oom, limit of: container (64.0 MiB)", `"Look\tthere."`, "2 more"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if got := s.Exits[maxExits].Words(); got != "application (likely)" {
		t.Errorf("%q", got)
	}
}
