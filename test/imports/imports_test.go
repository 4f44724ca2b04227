package imports

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestModule holds this module to all rules. End-to-end tests are behind a build tag; they are listed too.
func TestModule(t *testing.T) {
	module, root, err := Module(".")
	if err != nil {
		t.Fatal(err)
	}
	packages, err := List(root, "-tags=e2e", "./...")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(packages, func(p Package) bool { return p.ImportPath == module+"/test/imports" }) {
		t.Fatalf("go list names %d packages and not this one", len(packages))
	}

	report(t, Layers(module, packages))
	report(t, Names(module, packages))

	fsys := os.DirFS(root)
	for _, p := range packages {
		dir, err := filepath.Rel(root, p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		found, err := Comments(fsys, filepath.ToSlash(dir), p.Name)
		if err != nil {
			t.Fatal(err)
		}
		report(t, found)
	}

	for _, room := range pure {
		found, err := Pure(fsys, room)
		if err != nil {
			t.Fatal(err)
		}
		report(t, found)
	}

	names, err := TopLevel(root)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(names, "go.mod") {
		t.Fatalf("the top level has no go.mod: %q", names)
	}
	report(t, Entries(names))
}

// TestBinary holds the import closure of the shipped command to the rules.
func TestBinary(t *testing.T) {
	module, root, err := Module(".")
	if err != nil {
		t.Fatal(err)
	}
	deps, err := List(root, "-deps", "./cmd/spillway")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(deps, func(p Package) bool { return p.ImportPath == "runtime" }) {
		t.Fatalf("go list -deps names %d packages and not runtime", len(deps))
	}
	report(t, Binary(module, deps))
}

func report(t *testing.T, found []Finding) {
	t.Helper()
	for _, f := range found {
		t.Error(f)
	}
}
