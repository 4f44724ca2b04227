package imports

import (
	"testing"
	"testing/fstest"
)

func TestCommentsBite(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	const documented = "// Package p does one thing.\npackage p\n"
	tests := []struct {
		name  string
		pkg   string
		files fstest.MapFS
		want  string
	}{
		{"one comment", "p", fstest.MapFS{"d/a.go": file(documented), "d/b.go": file("package p\n")}, ""},
		{"none", "p", fstest.MapFS{"d/a.go": file("package p\n")}, "has no package comment"},
		{"two", "p", fstest.MapFS{"d/a.go": file(documented), "d/b.go": file(documented)}, "d/a.go, d/b.go"},
		{"two, one behind a build tag", "p", fstest.MapFS{"d/a.go": file(documented), "d/b.go": file("//go:build never\n\n" + documented)}, "d/a.go, d/b.go"},
		{"a directive is no comment", "p", fstest.MapFS{"d/a.go": file("//go:build linux\npackage p\n")}, "has no package comment"},
		{"a license header is no comment", "p", fstest.MapFS{"d/a.go": file("// All rights.\n\npackage p\n")}, "has no package comment"},
		{"another package's name", "p", fstest.MapFS{"d/a.go": file("// Package q does it.\npackage p\n")}, "does not begin with"},
		{"a name that only begins alike", "p", fstest.MapFS{"d/a.go": file("// Package pq does it.\npackage p\n")}, "does not begin with"},
		{"only in a test file", "p", fstest.MapFS{"d/a.go": file("package p\n"), "d/a_test.go": file(documented)}, "comment in a test file"},
		{"nothing but tests", "p", fstest.MapFS{"d/a_test.go": file(documented), "d/b_test.go": file("package p\n")}, ""},
		{"nothing but external tests", "p", fstest.MapFS{"d/a_test.go": file("// Package p_test tries it.\npackage p_test\n")}, ""},
		{"a command", "main", fstest.MapFS{"d/a.go": file("// Spillway watches.\npackage main\n")}, ""},
		{"a generator beside the package", "p", fstest.MapFS{"d/a.go": file(documented), "d/gen.go": file("//go:build ignore\n\n// Gen writes a table.\npackage main\n")}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found, err := Comments(tt.files, "d", tt.pkg)
			if err != nil {
				t.Fatal(err)
			}
			wantOne(t, found, tt.want)
		})
	}
	if _, err := Comments(fstest.MapFS{"d/a.go": file("no Go")}, "d", "p"); err == nil {
		t.Error("a file that does not parse: no error")
	}
	if _, err := Comments(fstest.MapFS{}, "d", "p"); err == nil {
		t.Error("a folder that is not there: no error")
	}
}

func TestPureBites(t *testing.T) {
	tests := []struct {
		name string
		file string
		text string
		want string
	}{
		{"the clock", "d/a.go", "package p\nimport \"time\"\nvar f = func() { _ = time.Now() }\n", "uses time.Now"},
		{"the clock as a value", "d/a.go", "package p\nimport \"time\"\nvar now = time.Now\n", "uses time.Now"},
		{"the clock by another name", "d/a.go", "package p\nimport clk \"time\"\nvar now = clk.Since\n", "uses time.Since"},
		{"the clock with a dot", "d/a.go", "package p\nimport . \"time\"\nvar now = Now\n", "with a dot"},
		{"a timer", "d/a.go", "package p\nimport \"time\"\nvar c = time.After(time.Second)\n", "d/a.go:3 uses time.After"},
		{"a goroutine", "d/a.go", "package p\nfunc f() { go f() }\n", "starts a goroutine"},
		{"durations", "d/a.go", "package p\nimport \"time\"\nfunc f(d time.Duration) float64 { return d.Seconds() }\n", ""},
		{"something else called Now", "d/a.go", "package p\ntype in struct{ Now int }\nfunc f(time in) int { return time.Now }\n", ""},
		{"the clock in a test", "d/a_test.go", "package p\nimport \"time\"\nvar now = time.Now\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found, err := Pure(fstest.MapFS{tt.file: {Data: []byte(tt.text)}}, "d")
			if err != nil {
				t.Fatal(err)
			}
			wantOne(t, found, tt.want)
		})
	}
}

func TestNamesBite(t *testing.T) {
	tests := []struct {
		name string
		pkg  Package
		want string
	}{
		{"a noun", Package{ImportPath: "m/agent/ring", Name: "ring"}, ""},
		{"a folder", Package{ImportPath: "m/agent/util", Name: "parse"}, "is called util"},
		{"a folder on the way", Package{ImportPath: "m/pkg/ring", Name: "ring"}, "is called pkg"},
		{"a package name", Package{ImportPath: "m/agent/shared", Name: "common"}, "is called common"},
		{"folder and package", Package{ImportPath: "m/agent/types", Name: "types"}, "is called types"},
		{"a name that contains one", Package{ImportPath: "m/agent/utility", Name: "utility"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantOne(t, Names("m", []Package{tt.pkg}), tt.want) })
	}
}

func TestEntriesBite(t *testing.T) {
	wantOne(t, Entries([]string{"Makefile", "agent", ".ci"}), "")
	wantOne(t, Entries([]string{"agent", "scripts"}), "scripts lies at the top level")
	wantOne(t, Entries([]string{".env"}), ".env lies at the top level")
}
