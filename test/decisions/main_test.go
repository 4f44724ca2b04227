package main

import (
	"bytes"
	"flag"
	"os"
	"runtime"
	"testing"

	"spillway/test/race"
)

var update = flag.Bool("update", false, "write the table anew")

// TestTable runs every load, and compares with the table in the repository: what is decided otherwise is seen in review.
func TestTable(t *testing.T) {
	if race.Enabled { // two minutes for the same single goroutine again and again
		for _, s := range scenarios()[:3] {
			if r := s.run(); s.check(&r) != "" {
				t.Errorf("%s: %s", s.name, s.check(&r))
			}
		}
		return
	}
	var got bytes.Buffer
	if err := write(&got); err != nil {
		t.Error(err)
	}
	if *update {
		if err := os.WriteFile("TABLE.md", got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("TABLE.md")
	if err != nil {
		t.Fatal(err)
	}
	// The model's own arithmetic may be fused elsewhere.
	if runtime.GOARCH == "amd64" && !bytes.Equal(want, got.Bytes()) {
		t.Errorf("TABLE.md is not what the loads give now: see 'make decisions', and take it over with -update")
	}
}
