//go:build e2e

package cri_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const image = "localhost/pause:1"

// daemon is a real containerd with its own root, state, socket and cgroup.
type daemon struct {
	t      *testing.T
	bin    string // directory of containerd, containerd-shim-runc-v2 and ctr
	dir    string
	cgroup string // name of the cgroup, in every hierarchy, of the daemon's pods
	home   string // directory of the cgroup that the daemon and its shims run in
	cmd    *exec.Cmd
}

// newDaemon prepares a containerd without starting it. It skips only when no binaries were named.
func newDaemon(t *testing.T) *daemon {
	t.Helper()
	bin := os.Getenv("SPILLWAY_CONTAINERD")
	if bin == "" {
		t.Skip("SPILLWAY_CONTAINERD names no directory with containerd, containerd-shim-runc-v2 and ctr")
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Fatalf("look for %s: %v", name, err)
		}
	}
	if os.Geteuid() != 0 {
		t.Fatal("containerd needs root")
	}
	d := &daemon{t: t, bin: bin, dir: shortDir(t), cgroup: "spillway-cri-e2e-" + strconv.Itoa(os.Getpid())}
	d.home = filepath.Join("/sys/fs/cgroup/memory", d.cgroup, "daemon")
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		d.home = filepath.Join("/sys/fs/cgroup", d.cgroup, "daemon")
	}
	t.Cleanup(d.clean)
	if err := os.MkdirAll(d.home, 0o755); err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	config := fmt.Sprintf(`version = 3
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "%[2]s"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["%[1]s/cni"]
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    SystemdCgroup = false
`, d.dir, image)
	if err := os.WriteFile(d.path("config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

func (d *daemon) endpoint() string { return "unix://" + d.path("c.sock") }

func (d *daemon) env() []string {
	return append(os.Environ(), "PATH="+d.bin+":/usr/local/sbin:/usr/sbin:/sbin:"+os.Getenv("PATH"))
}

// start starts containerd and returns at once.
func (d *daemon) start() {
	d.t.Helper()
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(filepath.Join(d.bin, "containerd"), "--config", d.path("config.toml"))
	d.cmd.Stdout, d.cmd.Stderr, d.cmd.Env = log, log, d.env()
	if err := d.cmd.Start(); err != nil {
		d.t.Fatalf("start containerd: %v", err)
	}
	if err := os.WriteFile(filepath.Join(d.home, "cgroup.procs"), []byte(strconv.Itoa(d.cmd.Process.Pid)), 0); err != nil {
		d.t.Fatalf("move containerd to its cgroup: %v", err)
	}
}

func (d *daemon) signal(s syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatalf("send %v to containerd: %v", s, err)
	}
}

// stop ends containerd with a signal and waits for it. Its shims and containers stay.
func (d *daemon) stop(s syscall.Signal) {
	d.t.Helper()
	d.signal(s)
	_ = d.cmd.Wait() // the status is that of the signal
	d.cmd = nil
}

// cli connects a plain CRI client for what the package does not do: running pods.
func (d *daemon) cli() runtimeapi.RuntimeServiceClient {
	d.t.Helper()
	conn, err := grpc.NewClient(d.endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close() })
	return runtimeapi.NewRuntimeServiceClient(conn)
}

// importImage builds an image of one static program and imports it.
func (d *daemon) importImage() {
	d.t.Helper()
	build := exec.Command("go", "build", "-o", d.path("pause"), "./testdata/pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		d.t.Fatalf("build pause: %v: %s", err, out)
	}
	program, err := os.ReadFile(d.path("pause"))
	if err != nil {
		d.t.Fatal(err)
	}
	layer := archive(d.t, file{"pause", program})
	sum := sha256.Sum256(layer)
	config := encode(d.t, map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/pause"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	manifest := encode(d.t, []map[string]any{{"Config": "config.json", "RepoTags": []string{image}, "Layers": []string{"layer.tar"}}})
	tarball := d.path("image.tar")
	if err := os.WriteFile(tarball, archive(d.t, file{"config.json", config}, file{"layer.tar", layer}, file{"manifest.json", manifest}), 0o600); err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "ctr"), "--address", d.path("c.sock"), "--namespace", "k8s.io", "images", "import", tarball)
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("import image: %v: %s", err, out)
	}
}

type file struct {
	name string
	data []byte
}

func archive(t *testing.T, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// clean ends every process in the cgroups of this test, unmounts what is mounted under its directory and removes the
// cgroups. It is not part of what is tested and goes on after a fault, but a leftover fails the test.
func (d *daemon) clean() {
	if d.t.Failed() {
		log, _ := os.ReadFile(d.path("log"))
		d.t.Logf("containerd's log ends:\n%s", log[max(0, len(log)-4000):])
	}
	if d.cmd != nil {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
	}
	d.forgetShims()
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + d.cgroup)
	if _, err := os.Stat("/sys/fs/cgroup/" + d.cgroup); err == nil {
		roots = append(roots, "/sys/fs/cgroup/"+d.cgroup)
	}
	var dirs []string
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	slices.Reverse(dirs) // children first
	deadline := time.Now().Add(10 * time.Second)
	for len(dirs) > 0 && time.Now().Before(deadline) {
		dirs = slices.DeleteFunc(dirs, func(dir string) bool {
			procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for _, pid := range strings.Fields(string(procs)) {
				if n, err := strconv.Atoi(pid); err == nil && n > 1 && n != os.Getpid() {
					_ = syscall.Kill(n, syscall.SIGKILL)
				}
			}
			err := os.Remove(dir)
			return err == nil || errors.Is(err, fs.ErrNotExist)
		})
	}
	for _, dir := range dirs {
		d.t.Errorf("cgroup %s is left", dir)
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	var points []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], d.dir+"/") {
			points = append(points, f[1])
		}
	}
	slices.Reverse(points)
	for _, p := range points {
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil {
			d.t.Errorf("unmount %s: %v", p, err)
		}
	}
}

// forgetShims removes what the shims of containers that were not removed keep outside of the daemon's directory.
func (d *daemon) forgetShims() {
	tasks, _ := filepath.Glob(d.path("state/io.containerd.runtime.v2.task/k8s.io/*"))
	for _, task := range tasks {
		_ = os.RemoveAll(filepath.Join("/run/containerd/runc/k8s.io", filepath.Base(task)))
		var boot struct{ Address string }
		b, err := os.ReadFile(filepath.Join(task, "bootstrap.json"))
		if err == nil && json.Unmarshal(b, &boot) == nil && strings.HasPrefix(boot.Address, "unix:///run/containerd/s/") {
			_ = os.Remove(strings.TrimPrefix(boot.Address, "unix://"))
		}
	}
}
