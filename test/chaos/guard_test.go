package chaos

import (
	"go/parser"
	"go/token"
	"testing"
)

// TestGuardsAreThere: each stands where it is looked for, and the file is Go without it too.
func TestGuardsAreThere(t *testing.T) {
	names := map[string]bool{}
	for _, g := range Guards() {
		if names[g.Name] {
			t.Errorf("two guards are called %s", g.Name)
		}
		names[g.Name] = true
		text, err := g.source("../..")
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := parser.ParseFile(token.NewFileSet(), g.File, text, 0); err != nil {
			t.Errorf("without %s: %v", g.Name, err)
		}
	}
}
