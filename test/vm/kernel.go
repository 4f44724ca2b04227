package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kernel is a series of Debian's cloud kernels.
type Kernel string

// The kernels that Debian 12 has, and that of Debian 11 as it was last released: its oom:mark_victim passes a number only.
const (
	Kernel6_1  Kernel = "6.1"
	Kernel6_12 Kernel = "6.12"
	Kernel5_10 Kernel = "5.10"
)

// Kernels lists those that a node is tried on; Kernel5_10 is for the tests of single parts.
func Kernels() []Kernel { return []Kernel{Kernel6_1, Kernel6_12} }

// metaPackage depends on the series' newest kernel. release is the one of Debian that has it, "" for this machine's.
func (k Kernel) metaPackage() (name, release string, err error) {
	switch k {
	case Kernel6_1:
		return "linux-image-cloud-amd64", "", nil
	case Kernel6_12:
		return "linux-image-6.12-cloud-amd64", "", nil
	case Kernel5_10:
		return "linux-image-cloud-amd64", "bullseye", nil
	}
	return "", "", fmt.Errorf("kernel %q: have %q", k, Kernels())
}

// Files are one kernel on disk.
type Files struct {
	Image   string // bzImage
	modules string // folder with all module files
}

// Fetch returns the kernel's files from the cache folder, and gets them from Debian's mirror first when they are not
// there. Nothing is installed.
func (k Kernel) Fetch(ctx context.Context, cache string, progress io.Writer) (Files, error) {
	meta, release, err := k.metaPackage()
	if err != nil {
		return Files{}, err
	}
	from := archive{release: release}
	if release != "" {
		if from.dir, err = filepath.Abs(filepath.Join(cache, "apt-"+release)); err != nil {
			return Files{}, fmt.Errorf("find index of %s: %w", release, err)
		}
	}
	depends, err := from.field(ctx, meta, "Depends: ")
	if err != nil {
		return Files{}, err
	}
	pkg, _, _ := strings.Cut(depends, " ")
	if !strings.HasPrefix(pkg, "linux-image-") {
		return Files{}, fmt.Errorf("package %s: depends on %q, want a kernel", meta, depends)
	}
	dir, err := from.unpacked(ctx, cache, pkg, progress)
	if err != nil {
		return Files{}, err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Files{}, fmt.Errorf("package %s: want one kernel image, have %q", pkg, images)
	}
	return Files{Image: images[0], modules: filepath.Join(dir, "lib", "modules")}, nil
}

// Module is a loadable part of a kernel.
type Module struct {
	Name    string
	Content []byte // ELF
}

// Modules returns the named modules in an order in which they can be loaded: what one needs stands before it. What
// is built in is left out.
func (f Files) Modules(ctx context.Context, names ...string) ([]Module, error) {
	paths := map[string]string{}
	var builtin []string
	err := filepath.WalkDir(f.modules, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		base := filepath.Base(path)
		if base == "modules.builtin" {
			b, err := os.ReadFile(path)
			builtin = strings.Fields(string(b))
			return err
		}
		if name, _, ok := strings.Cut(base, ".ko"); ok {
			paths[moduleName(name)] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list kernel modules: %w", err)
	}
	known := map[string]bool{}
	for _, b := range builtin {
		known[moduleName(strings.TrimSuffix(filepath.Base(b), ".ko"))] = true
	}
	var out []Module
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if done[name] {
			return nil
		}
		done[name] = true
		path, ok := paths[name]
		if !ok {
			if known[name] {
				return nil
			}
			return fmt.Errorf("kernel module %s: neither a file nor built in, in %s", name, f.modules)
		}
		m, needs, err := readModule(ctx, path)
		if err != nil {
			return err
		}
		m.Name = name
		for _, n := range needs {
			if err := add(moduleName(n)); err != nil {
				return err
			}
		}
		out = append(out, m)
		return nil
	}
	for _, n := range names {
		if err := add(moduleName(n)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleName is the kernel's own spelling; file names may have dashes.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// readModule returns a module and the names of those it needs, which stand in its section .modinfo (depends=a,b).
func readModule(ctx context.Context, path string) (Module, []string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Module{}, nil, fmt.Errorf("read kernel module: %w", err)
	}
	if strings.HasSuffix(path, ".xz") {
		cmd := exec.CommandContext(ctx, "xz", "-dc")
		cmd.Stdin = bytes.NewReader(content)
		if content, err = cmd.Output(); err != nil {
			return Module{}, nil, fmt.Errorf("decompress %s: %w", path, err)
		}
	}
	e, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return Module{}, nil, fmt.Errorf("parse %s: %w", path, err)
	}
	section := e.Section(".modinfo")
	if section == nil {
		return Module{}, nil, fmt.Errorf("parse %s: %w", path, errors.New("no section .modinfo"))
	}
	info, err := section.Data()
	if err != nil {
		return Module{}, nil, fmt.Errorf("parse %s: %w", path, err)
	}
	var needs []string
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok && list != "" {
			needs = append(needs, strings.Split(list, ",")...)
		}
	}
	return Module{Content: content}, needs, nil
}
