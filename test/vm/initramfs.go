package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Initramfs is the root file system of a machine. Missing parent folders are added. Paths are absolute.
type Initramfs struct {
	entries map[string]entry
}

type entry struct {
	mode    uint32 // type and permission bits as in stat
	content []byte
	source  string // file whose content is taken
	rdev    [2]uint32
}

// Types of stat modes.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
	modeChar = 0o020000
)

// NewInitramfs returns one with the folders that a kernel's first process wants to mount on.
func NewInitramfs() *Initramfs {
	a := &Initramfs{entries: map[string]entry{}}
	for _, d := range []string{"/proc", "/sys", "/dev", "/run", "/root", "/etc", "/mnt", "/var/log", "/usr/bin", "/usr/sbin"} {
		a.Dir(d, 0o755)
	}
	a.Dir("/tmp", 0o1777)
	// The first process gets its standard files from it.
	a.put("/dev/console", entry{mode: modeChar | 0o600, rdev: [2]uint32{5, 1}})
	return a
}

func (a *Initramfs) put(name string, e entry) {
	name = path.Clean(name)
	for d := path.Dir(name); d != "/" && d != "."; d = path.Dir(d) {
		if _, ok := a.entries[d]; !ok {
			a.entries[d] = entry{mode: modeDir | 0o755}
		}
	}
	a.entries[name] = e
}

// Dir adds a folder.
func (a *Initramfs) Dir(name string, perm uint32) { a.put(name, entry{mode: modeDir | perm}) }

// Bytes adds a file with the given content.
func (a *Initramfs) Bytes(name string, content []byte, perm uint32) {
	a.put(name, entry{mode: modeFile | perm, content: content})
}

// Link adds a symbolic link.
func (a *Initramfs) Link(name, target string) {
	a.put(name, entry{mode: modeLink | 0o777, content: []byte(target)})
}

// File adds a file of the machine under another name; a folder with all that is in it.
func (a *Initramfs) File(name, source string) error {
	err := filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, p)
		if err != nil {
			return err
		}
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		target := path.Join(name, filepath.ToSlash(rel))
		switch {
		case info.IsDir() && d.Type()&fs.ModeSymlink == 0:
			a.Dir(target, uint32(info.Mode().Perm()))
		case info.Mode().IsRegular():
			a.put(target, entry{mode: modeFile | uint32(info.Mode().Perm()), source: p})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("add %s to the machine: %w", source, err)
	}
	return nil
}

// Program adds an executable with the shared libraries that it needs, which keep their paths.
func (a *Initramfs) Program(ctx context.Context, name, source string) error {
	if err := a.File(name, source); err != nil {
		return err
	}
	// It fails for a static one, which needs none.
	out, err := exec.CommandContext(ctx, "ldd", source).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("find libraries of %s: %w", source, err)
	}
	for word := range strings.FieldsSeq(string(out)) {
		if !filepath.IsAbs(word) {
			continue
		}
		real, err := filepath.EvalSymlinks(word)
		if err != nil {
			return fmt.Errorf("find libraries of %s: %w", source, err)
		}
		if err := a.File(word, real); err != nil {
			return err
		}
	}
	return nil
}

// WriteFile writes the archive in the format that the kernel unpacks (cpio newc, described in the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: unpacking is what an emulated processor
// is slow at.
func (a *Initramfs) WriteFile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("make initramfs: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = a.write(w)
	if err := errors.Join(err, w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write initramfs %s: %w", name, err)
	}
	return nil
}

func (a *Initramfs) write(w io.Writer) error {
	for i, name := range slices.Sorted(maps.Keys(a.entries)) {
		e := a.entries[name]
		if err := e.write(w, i+1, strings.TrimPrefix(name, "/")); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return entry{}.write(w, 0, "TRAILER!!!")
}

func (e entry) write(w io.Writer, inode int, name string) error {
	size := int64(len(e.content))
	var content io.Reader = strings.NewReader(string(e.content))
	if e.source != "" {
		f, err := os.Open(e.source)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		size, content = info.Size(), f
	}
	if size >= 1<<32 {
		return errors.New("file too large for an initramfs")
	}
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		inode, e.mode, 0, 0, 1, 0, size, 0, 0, e.rdev[0], e.rdev[1], len(name)+1, 0, name)
	if _, err := io.WriteString(w, pad(header)); err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(content, size))
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("%d bytes instead of %d", n, size)
	}
	_, err = io.WriteString(w, strings.Repeat("\x00", int(-size&3)))
	return err
}

// pad fills up to a multiple of four.
func pad(s string) string { return s + strings.Repeat("\x00", -len(s)&3) }
