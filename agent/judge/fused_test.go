package judge

import (
	"os"
	"os/exec"
	"regexp"
	"testing"
)

// TestNothingIsFused: a product that is added without a rounding between gives other digits on processors that can do
// both at once, and a recording would not replay there. What the compiler makes for one of them is looked at.
func TestNothingIsFused(t *testing.T) {
	for _, pkg := range []string{"spillway/agent/pressure", "spillway/agent/policy", "spillway/agent/judge"} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-gcflags=-S", pkg)
		cmd.Env = append(os.Environ(), "GOARCH=arm64", "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go build %s: %v\n%s", pkg, err, out)
		}
		if !regexp.MustCompile(`\bFMULD\b|\bFADDD\b`).Match(out) && pkg != "spillway/agent/judge" {
			t.Errorf("%s: no arithmetic in what the compiler says: has its output changed?", pkg)
		}
		for _, line := range regexp.MustCompile(`(?m)^.*\bFN?M(?:ADD|SUB)[SD]\b.*$`).FindAllString(string(out), 10) {
			t.Errorf("%s: %s", pkg, line)
		}
	}
}
