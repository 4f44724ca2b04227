package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pages are README and what it leads to.
func pages(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range append(names, "../README.md", "RUNBOOKS.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(text)
	}
	return out
}

// TestLinks: every page that a page leads to is there, every target of make that one names is in the Makefile, and README leads
// to every page.
func TestLinks(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	all := pages(t)
	for page, text := range all {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), target)); err != nil {
				t.Errorf("%s leads to %s: %v", page, m[1], err)
			}
		}
		for _, m := range regexp.MustCompile("(?m)(?:`|^    )make ([a-z0-9][a-z0-9-]*)").FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(makefile) {
				t.Errorf("%s names make %s, which the Makefile does not have", page, m[1])
			}
		}
	}
	readme := all["../README.md"]
	if len(readme) > 12<<10 {
		t.Errorf("README has %d bytes, want a front page of at most 12 KiB", len(readme))
	}
	for page := range all {
		if name := filepath.Base(page); page != "../README.md" && !strings.Contains(readme, name+")") && !slices.Contains([]string{"development.md"}, name) {
			t.Errorf("README does not lead to %s", page)
		}
	}
}
