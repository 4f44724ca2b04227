// Package parts builds the programs of the test cluster (Kubernetes, containerd, etcd) from their Go modules into a
// cache that is keyed by everything that goes into them.
//
// Each folder beside this file is a module of its own, so that none of their requirements reaches Spillway's go.mod.
package parts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Versions of the parts; the go.mod files pin the same ones.
const (
	KubernetesVersion = "v1.36.3"
	ContainerdVersion = "v2.2.1"
)

// part is one `go build` call: the packages of one module. Output names are the last element of a package path,
// except etcd's, whose package is called v3.
type part struct {
	dir      string
	ldflags  string
	packages []string
	output   string // name of the only binary where the package path does not say it
}

func all() []part {
	k := "k8s.io/kubernetes/cmd/"
	c := "github.com/containerd/containerd/v2/cmd/"
	return []part{
		{
			dir:      "kubernetes",
			ldflags:  "-s -w -X k8s.io/component-base/version.gitVersion=" + KubernetesVersion,
			packages: []string{k + "kube-apiserver", k + "kube-controller-manager", k + "kube-scheduler", k + "kubelet", k + "kubectl"},
		},
		{
			dir:      "containerd",
			ldflags:  "-s -w -X github.com/containerd/containerd/v2/version.Version=" + ContainerdVersion,
			packages: []string{c + "containerd", c + "containerd-shim-runc-v2", c + "ctr"},
		},
		{dir: "etcd", ldflags: "-s -w", packages: []string{"go.etcd.io/etcd/server/v3"}, output: "etcd"},
	}
}

// Options say where to build. All fields are needed.
type Options struct {
	// Dir holds the modules: test/cluster/parts of the source tree.
	Dir string
	// Cache is the folder under which the result is kept.
	Cache string
	// Progress receives one line per step and one every ten seconds.
	Progress io.Writer
}

// Build returns the folder with all binaries; it builds them when the cache has none for these modules and this Go
// version, which takes minutes. Two calls at once do not disturb each other: the second waits and finds the result.
func Build(ctx context.Context, o Options) (string, error) {
	key, err := cacheKey(ctx, o.Dir)
	if err != nil {
		return "", err
	}
	final := filepath.Join(o.Cache, "parts-"+key)
	bin := filepath.Join(final, "bin")
	if complete(bin) {
		return bin, nil
	}
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	unlock, err := lock(ctx, final+".lock", o.Progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if complete(bin) {
		return bin, nil
	}
	tmp, err := os.MkdirTemp(o.Cache, ".parts-*")
	if err != nil {
		return "", fmt.Errorf("make build folder: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("make build folder: %w", err)
	}
	if err := os.Mkdir(filepath.Join(tmp, "bin"), 0o755); err != nil {
		return "", fmt.Errorf("make build folder: %w", err)
	}
	start, n, total := time.Now(), 0, count()
	fmt.Fprintf(o.Progress, "building %d programs from source into %s (once; minutes)\n", total, final)
	for _, p := range all() {
		for _, pkg := range p.packages {
			n++
			what := fmt.Sprintf("[%d/%d] %s", n, total, p.name(pkg))
			if err := p.build(ctx, o, pkg, filepath.Join(tmp, "bin", p.name(pkg)), what, start); err != nil {
				return "", err
			}
		}
	}
	// What is there was incomplete, or the check above had returned.
	if err := os.RemoveAll(final); err != nil {
		return "", fmt.Errorf("replace %s: %w", final, err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", fmt.Errorf("publish build: %w", err)
	}
	fmt.Fprintf(o.Progress, "built %d programs in %s\n", total, time.Since(start).Round(time.Second))
	return bin, nil
}

func (p part) name(pkg string) string {
	if p.output != "" {
		return p.output
	}
	return pkg[strings.LastIndexByte(pkg, '/')+1:]
}

func (p part) build(ctx context.Context, o Options, pkg, out, what string, start time.Time) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", p.ldflags, "-o", out, pkg)
	cmd.Dir = filepath.Join(o.Dir, p.dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // go ends its compilers itself
	cmd.WaitDelay = 5 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	fmt.Fprintf(o.Progress, "%s: building (%s elapsed)\n", what, time.Since(start).Round(time.Second))
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fmt.Fprintf(o.Progress, "%s: still building (%s elapsed)\n", what, time.Since(start).Round(time.Second))
		case err := <-done:
			if ctx.Err() != nil {
				return fmt.Errorf("build %s: %w", pkg, context.Cause(ctx))
			}
			if err != nil {
				return fmt.Errorf("build %s: %w\n%s", pkg, err, said.String())
			}
			return nil
		}
	}
}

func count() (n int) {
	for _, p := range all() {
		n += len(p.packages)
	}
	return n
}

func complete(bin string) bool {
	for _, p := range all() {
		for _, pkg := range p.packages {
			if fi, err := os.Stat(filepath.Join(bin, p.name(pkg))); err != nil || !fi.Mode().IsRegular() {
				return false
			}
		}
	}
	return true
}

// cacheKey covers module requirements, build flags and the Go version.
func cacheKey(ctx context.Context, dir string) (string, error) {
	sum := sha256.New()
	goVersion, err := exec.CommandContext(ctx, "go", "env", "GOVERSION", "GOARCH").Output()
	if err != nil {
		return "", fmt.Errorf("ask go for its version: %w", err)
	}
	sum.Write(goVersion)
	for _, p := range all() {
		fmt.Fprintln(sum, p.dir, p.ldflags, p.packages)
		for _, f := range []string{"go.mod", "go.sum"} {
			b, err := os.ReadFile(filepath.Join(dir, p.dir, f))
			if err != nil {
				return "", fmt.Errorf("read part: %w", err)
			}
			fmt.Fprintln(sum, len(b))
			sum.Write(b)
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// lock takes an exclusive file lock, which the kernel drops with the process.
func lock(ctx context.Context, name string, progress io.Writer) (func(), error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open build lock: %w", err)
	}
	for told := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if !told {
			fmt.Fprintf(progress, "waiting for another build to finish (%s)\n", name)
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, context.Cause(ctx))
		case <-time.After(500 * time.Millisecond):
		}
	}
}
