package agent

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestMessageIDs: each is one of its kind, and the page of logs lists it.
func TestMessageIDs(t *testing.T) {
	source, err := os.ReadFile("messages.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../deploy/docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`messageID\("([^"]*)"\)`).FindAllStringSubmatch(string(source), -1) {
		id := m[1]
		if seen[id] || !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
			t.Errorf("%q is there twice, or no ID of 128 bits", id)
		}
		seen[id] = true
		if !strings.Contains(string(page), "`"+id+"`") {
			t.Errorf("deploy/docs/logs.md does not list %s", id)
		}
	}
	if len(seen) < 10 {
		t.Errorf("%d IDs were found", len(seen))
	}
}
