package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// aptTimeout bounds one call of a Debian tool that may use the network.
const aptTimeout = 5 * time.Minute

// debian runs one of Debian's tools in a folder and returns its output.
func debian(ctx context.Context, dir, tool string, args ...string) (string, error) {
	if _, err := exec.LookPath(tool); err != nil {
		return "", fmt.Errorf("find %s: %w (virtual machines need a Debian machine)", tool, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, aptTimeout, fmt.Errorf("no end after %s", aptTimeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Install installs QEMU and the tools that machines are made with, where they are missing.
func Install(ctx context.Context, progress io.Writer) error {
	var missing []string
	for tool, pkg := range map[string]string{
		"qemu-system-x86_64": "qemu-system-x86",
		"xz":                 "xz-utils",
		"mkfs.ext4":          "e2fsprogs",
	} {
		_, err := exec.LookPath(tool)
		if errors.Is(err, exec.ErrNotFound) {
			_, err = os.Stat(filepath.Join("/sbin", tool)) // not in every user's PATH
		}
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, pkg)
		} else if err != nil {
			return fmt.Errorf("find %s: %w", tool, err)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	fmt.Fprintf(progress, "installing with apt-get: %s\n", strings.Join(missing, ", "))
	if _, err := debian(ctx, "/", "apt-get", "update", "-q"); err != nil {
		return err
	}
	_, err := debian(ctx, "/", "apt-get", append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...)...)
	return err
}

// archive is where packages come from: what this machine is set up for, or another release of Debian with an index of its own.
type archive struct {
	release, dir string // empty for this machine's
}

// mirror returns the mirror of Debian that this machine's sources name. Who made an archive is known from its index only: a
// machine that never asked for the index asks now.
func mirror(ctx context.Context) (string, error) {
	find := func() (string, error) {
		out, err := debian(ctx, "/", "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian")
		return firstMirror(out), err
	}
	if found, err := find(); err != nil || found != "" {
		return found, err
	}
	if _, err := debian(ctx, "/", "apt-get", "update", "-q"); err != nil {
		return "", err
	}
	found, err := find()
	if err == nil && found == "" {
		err = errors.New("find a mirror of Debian: apt's sources name none that is on a network")
	}
	return found, err
}

// firstMirror picks the first address of a network: a CD has one release alone.
func firstMirror(addresses string) string {
	for line := range strings.Lines(addresses) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "http") || strings.HasPrefix(line, "mirror") {
			return strings.TrimSuffix(line, "/")
		}
	}
	return ""
}

// options let apt look at the release alone and leave this machine's state as it is.
func (a archive) options(ctx context.Context) ([]string, error) {
	if a.release == "" {
		return nil, nil
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make index of %s: %w", a.release, err)
		}
	}
	from, err := mirror(ctx)
	if err != nil {
		return nil, fmt.Errorf("make index of %s: %w", a.release, err)
	}
	list := filepath.Join(a.dir, "sources.list")
	line := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", from, a.release)
	if err := os.WriteFile(list, []byte(line), 0o644); err != nil {
		return nil, fmt.Errorf("make index of %s: %w", a.release, err)
	}
	return []string{"-o", "Dir::State::lists=" + filepath.Join(a.dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Dir::Etc::sourcelist=" + list, "-o", "Dir::Etc::sourceparts=-"}, nil
}

// apt runs one of apt's tools.
func (a archive) apt(ctx context.Context, dir, tool string, args ...string) (string, error) {
	options, err := a.options(ctx)
	if err != nil {
		return "", err
	}
	return debian(ctx, dir, tool, append(options, args...)...)
}

// unpacked returns a folder with the content of a Debian package, which it fetches once per version.
func (a archive) unpacked(ctx context.Context, cache, pkg string, progress io.Writer) (string, error) {
	version, err := a.field(ctx, pkg, "Version: ")
	if err != nil {
		return "", err
	}
	final := filepath.Join(cache, "debian-"+pkg+"_"+strings.NewReplacer(":", "-", "/", "-").Replace(version))
	if _, err := os.Stat(final); err == nil {
		return final, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look into cache: %w", err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	tmp, err := os.MkdirTemp(cache, ".debian-*")
	if err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(progress, "fetching Debian package %s %s\n", pkg, version)
	if _, err := a.apt(ctx, tmp, "apt-get", "download", "-q", pkg); err != nil {
		return "", err
	}
	archives, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(archives) != 1 {
		return "", fmt.Errorf("fetch package %s: want one archive, have %q", pkg, archives)
	}
	content := filepath.Join(tmp, "content")
	if _, err := debian(ctx, tmp, "dpkg", "-x", archives[0], content); err != nil {
		return "", err
	}
	// Another call may have been faster; what it made is as good.
	if err := os.Rename(content, final); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("publish package %s: %w", pkg, err)
	}
	return final, nil
}

// field returns what the package index says about a package's newest version. A machine that never asked for the index
// asks now.
func (a archive) field(ctx context.Context, pkg, key string) (string, error) {
	find := func() (string, error) {
		out, err := a.apt(ctx, "/", "apt-cache", "show", "--no-all-versions", pkg)
		for line := range strings.Lines(out) {
			if v, ok := strings.CutPrefix(line, key); ok {
				return strings.TrimSpace(v), nil
			}
		}
		if err == nil {
			err = fmt.Errorf("package %s: no %q in the index", pkg, key)
		}
		return "", err
	}
	if v, err := find(); err == nil {
		return v, nil
	}
	if _, err := a.apt(ctx, "/", "apt-get", "update", "-q"); err != nil {
		return "", err
	}
	return find()
}
