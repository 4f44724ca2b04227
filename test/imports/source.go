package imports

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// vague are names that say nothing about what a package is for.
var vague = []string{"util", "utils", "common", "commons", "helper", "helpers", "type", "types", "misc", "pkg"}

// entries are all names that may lie at the top of the tree.
var entries = []string{
	"cmd", "agent", "cgroup", "cri", "ebpf", "bpf", "deploy", "test",
	"Makefile", "Dockerfile", "LICENSE", "README.md", "go.mod", "go.sum",
	".ci", ".dockerignore", ".gitattributes", ".gitignore",
}

// clock are the functions of package time that read the clock or wait on it.
var clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

// Names checks the folders of a package below the module root and its package name.
func Names(module string, packages []Package) []Finding {
	const reason = "a name that fits anything collects everything; code lives in the package whose noun it serves"
	var found []Finding
	for _, p := range packages {
		rel := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		words := append(strings.Split(rel, "/"), p.Name)
		slices.Sort(words)
		for _, word := range slices.Compact(words) {
			if slices.Contains(vague, word) {
				found = append(found, Finding{p.ImportPath, "is called " + word, reason})
			}
		}
	}
	return found
}

// Entries checks the names at the top of the tree.
func Entries(names []string) []Finding {
	var found []Finding
	for _, name := range names {
		if !slices.Contains(entries, name) {
			found = append(found, Finding{name, "lies at the top level", "the layout is fixed: " + strings.Join(entries, " ")})
		}
	}
	return found
}

// Comments checks that the package name in folder dir of fsys has exactly one package comment, in a file that is
// built into it (in a test file only where there is nothing else), and that it begins with the package's name.
// Files for other systems and build tags count too: they are read, not selected.
func Comments(fsys fs.FS, dir, name string) ([]Finding, error) {
	const reason = "one comment per package says what it is responsible for; two drift apart"
	files, err := sources(fsys, dir)
	if err != nil {
		return nil, err
	}
	onlyTests := true
	for _, f := range files {
		if f.syntax.Name.Name == name && !f.test {
			onlyTests = false
		}
	}
	var with []string
	var found []Finding
	for _, f := range files {
		own := f.syntax.Name.Name
		if own != name && own != name+"_test" {
			continue // a generator beside the package, kept out of the build by its tag
		}
		if f.syntax.Doc == nil || strings.TrimSpace(f.syntax.Doc.Text()) == "" {
			continue
		}
		with = append(with, f.path)
		text := f.syntax.Doc.Text()
		if f.test && !onlyTests {
			found = append(found, Finding{f.path, "carries a package comment", "a comment in a test file is not shown to readers of the package"})
		}
		if name != "main" && !strings.HasPrefix(text, "Package "+own+" ") {
			found = append(found, Finding{f.path, fmt.Sprintf("has a package comment that does not begin with %q", "Package "+own), reason})
		}
	}
	switch {
	case len(with) == 0:
		found = append(found, Finding{dir, "has no package comment", reason})
	case len(with) > 1:
		found = append(found, Finding{dir, "has package comments in " + strings.Join(with, ", "), reason})
	}
	return found, nil
}

// Pure checks that the package in folder dir of fsys reads no clock and starts no goroutine outside its tests.
func Pure(fsys fs.FS, dir string) ([]Finding, error) {
	files, err := sources(fsys, dir)
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, f := range files {
		if f.test {
			continue
		}
		at := func(n ast.Node, what string) {
			line := f.set.Position(n.Pos()).Line
			found = append(found, Finding{fmt.Sprintf("%s:%d", f.path, line), what, pureReason})
		}
		name := importName(f.syntax, "time")
		if name == "." {
			at(f.syntax, "imports time with a dot")
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				if id, ok := n.X.(*ast.Ident); ok && name != "" && id.Name == name && slices.Contains(clock, n.Sel.Name) {
					at(n, "uses time."+n.Sel.Name)
				}
			case *ast.GoStmt:
				at(n, "starts a goroutine")
			}
			return true
		})
	}
	return found, nil
}

// source is one parsed Go file.
type source struct {
	path   string
	test   bool
	set    *token.FileSet
	syntax *ast.File
}

// sources parses all Go files of one folder.
func sources(fsys fs.FS, dir string) ([]source, error) {
	list, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var files []source
	for _, e := range list {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		name := path.Join(dir, e.Name())
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("read source: %w", err)
		}
		set := token.NewFileSet()
		syntax, err := parser.ParseFile(set, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parse source: %w", err)
		}
		files = append(files, source{path: name, test: strings.HasSuffix(name, "_test.go"), set: set, syntax: syntax})
	}
	return files, nil
}

// importName returns the name that the file knows the package by, "" when it does not import it.
func importName(file *ast.File, importPath string) string {
	for _, spec := range file.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err != nil || p != importPath {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path.Base(importPath)
	}
	return ""
}
