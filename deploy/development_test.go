package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestDevelopmentPage: every file and package that the page names is there.
func TestDevelopmentPage(t *testing.T) {
	page, err := os.ReadFile("docs/development.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`((?:agent|cgroup|cri|ebpf|test)(?:/[a-zA-Z./]+)?)`").FindAllStringSubmatch(string(page), -1)
	for _, n := range names {
		if _, err := os.Stat(filepath.Join("..", n[1])); err != nil {
			t.Errorf("the page names %s: %v", n[1], err)
		}
	}
	if len(names) < 30 {
		t.Errorf("%d names were found", len(names))
	}
}
