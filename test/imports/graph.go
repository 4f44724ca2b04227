// Package imports keeps the shape of the module: which package may import which, what may be linked into the
// binary, how packages are named and introduced, and what lies at the top level. It reads `go list`, the source
// tree and the list of tracked files; every finding names the rule's reason. It builds and runs nothing.
package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Package is the part of one `go list -json` record that the rules look at.
type Package struct {
	ImportPath   string
	Name         string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// Finding is one broken rule.
type Finding struct {
	Subject string // package, file or entry
	What    string // what was found there
	Reason  string // why it may not be
}

// String returns the finding in one line, reason last.
func (f Finding) String() string { return f.Subject + " " + f.What + ": " + f.Reason }

// List runs `go list -json` in dir with the given arguments and returns its packages. The binary is shipped for
// Linux without cgo, so that is the build it asks about, whatever the machine it runs on.
func List(dir string, args ...string) ([]Package, error) {
	out, err := output(dir, "go", append([]string{"list", "-json=ImportPath,Name,Dir,Imports,TestImports,XTestImports"}, args...)...)
	if err != nil {
		return nil, err
	}
	var packages []Package
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode go list: %w", err)
		}
		packages = append(packages, p)
	}
}

// Module returns the path and the folder of the module that dir lies in.
func Module(dir string) (path, root string, err error) {
	out, err := output(dir, "go", "list", "-m", "-f", "{{.Path}}\n{{.Dir}}")
	if err != nil {
		return "", "", err
	}
	path, root, ok := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if !ok {
		return "", "", fmt.Errorf("read go list -m: %q is not a path and a folder", out)
	}
	return path, root, nil
}

// TopLevel returns the names at the top of the tree: those that git tracks, or, in a tree without git (an unpacked
// archive), all but the folders that the Makefile writes.
func TopLevel(root string) ([]string, error) {
	var names []string
	if out, err := output(root, "git", "ls-files", "-z"); err == nil {
		for file := range strings.SplitSeq(strings.Trim(string(out), "\x00"), "\x00") {
			name, _, _ := strings.Cut(file, "/")
			names = append(names, name)
		}
	} else {
		entries, err := os.ReadDir(root)
		if err != nil {
			return nil, fmt.Errorf("list top level: %w", err)
		}
		for _, e := range entries {
			if !slices.Contains([]string{".git", "bin", "out"}, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// output runs one command in dir and returns what it prints; an error carries what it says on stderr.
func output(dir, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run %s %s: %w: %s", name, args[0], err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}
