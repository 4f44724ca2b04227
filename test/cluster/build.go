package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// moduleRoot finds Spillway's source tree, from which the cluster's own programs and the parts are built.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "spillway").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("find source tree (run inside it): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// buildOwn builds clusterctl, which is the supervisor, and what the workload image holds. With a warm Go cache it takes
// a second. It returns the folder of the programs.
func buildOwn(ctx context.Context) (string, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(root)) // two source trees must not swap programs
	bin := filepath.Join(cache, "own-"+hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin+"/",
		"spillway/test/cluster/clusterctl", "spillway/test/workload", "spillway/test/workload/probe")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=", "GOARCH=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build clusterctl and workload: %w\n%s", err, out)
	}
	return bin, nil
}

// installPackages installs the few programs that come from the distribution.
func installPackages(ctx context.Context, progress io.Writer) error {
	needed := map[string]string{ // file: Debian package
		"/usr/lib/cni/bridge":     "containernetworking-plugins",
		"/usr/lib/cni/host-local": "containernetworking-plugins",
		"/usr/lib/cni/loopback":   "containernetworking-plugins",
		"/usr/lib/cni/portmap":    "containernetworking-plugins",
		"runc":                    "runc",
		"ip":                      "iproute2",
		"iptables":                "iptables", // portmap calls it
	}
	missing := map[string]bool{}
	for file, pkg := range needed {
		_, err := os.Stat(file)
		if !filepath.IsAbs(file) {
			_, err = exec.LookPath(file)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
			missing[pkg] = true
		} else if err != nil {
			return fmt.Errorf("find %s: %w", file, err)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	args := []string{"install", "-y", "-q", "--no-install-recommends"}
	for pkg := range missing {
		args = append(args, pkg)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("install %s: no apt-get here, install them by hand", strings.Join(args[4:], ", "))
	}
	fmt.Fprintf(progress, "installing with apt-get: %s\n", strings.Join(args[4:], ", "))
	for _, a := range [][]string{{"update", "-q"}, args} {
		cmd := exec.CommandContext(ctx, "apt-get", a...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", a[0], err, out)
		}
	}
	return nil
}
