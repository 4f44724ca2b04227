package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"spillway/test/cluster/node"
)

// Cluster is a running cluster. Its methods may be called from several goroutines.
type Cluster struct {
	name     string
	run      Run
	binary   string // clusterctl
	progress io.Writer
	lifeline *os.File        // nil when detached or attached to
	reaped   <-chan struct{} // closed when the first process was waited for; nil when it is not our child

	config *rest.Config
	client *kubernetes.Clientset
	node   string
	down   sync.Mutex // one Down at a time
}

// running returns the state of a cluster whose first process lives, with that process's descriptor.
func (r Run) running() (state, *os.File, error) {
	s, err := r.readState()
	var pidfd *os.File
	if err == nil {
		pidfd, err = s.open()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil, fmt.Errorf("no cluster runs in %s", r.Dir)
	}
	return s, pidfd, err
}

// Attach finds a running cluster by its name. An empty name means the default one.
func Attach(name string) (*Cluster, error) {
	if name == "" {
		name = DefaultName
	}
	r, err := RunOf(name)
	if err != nil {
		return nil, err
	}
	s, pidfd, err := r.running()
	if err != nil {
		return nil, err
	}
	pidfd.Close()
	c := &Cluster{name: name, run: r, binary: s.Binary, progress: io.Discard}
	if err := c.attach(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Cluster) attach() error {
	config, err := clientcmd.BuildConfigFromFlags("", c.run.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	config.Dial = c.run.dial
	config.QPS, config.Burst = -1, -1 // tests must not measure a client's own brake
	if c.client, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	c.config, c.node = config, nodeName
	return nil
}

// Down stops the cluster and removes everything of it but the run folder.
func (c *Cluster) Down(ctx context.Context) error {
	c.down.Lock()
	defer c.down.Unlock()
	err := Down(ctx, c.name)
	if c.reaped != nil && err == nil {
		<-c.reaped
	}
	if c.lifeline != nil {
		c.lifeline.Close()
	}
	return err
}

// SetProgress says where lines about long steps go from now on; an attached cluster starts without.
func (c *Cluster) SetProgress(w io.Writer) { c.progress = w }

// Run returns the cluster's folder on the machine.
func (c *Cluster) Run() Run { return c.run }

// NodeName is the name of the node that runs on the machine itself.
func (c *Cluster) NodeName() string { return c.node }

// Facts asks the supervisor for the present thresholds, paths and health.
func (c *Cluster) Facts(ctx context.Context) (Facts, error) {
	return c.run.control(ctx, http.MethodGet, ControlFacts, nil)
}

// RESTConfig returns an administrator's client configuration that works from outside the cluster's network: its Dial
// enters it. Client-side rate limits are off.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.config) }

// Client returns an administrator's client.
func (c *Cluster) Client() *kubernetes.Clientset { return c.client }

// Command prepares a program to run in the node's mount, network and PID namespaces, with the built programs in its
// PATH and KUBECONFIG set. It is killed with the context, or when this process dies.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.binary, append([]string{"enter", c.name, "--", name}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// output runs a command and returns what it wrote to standard output; the error holds what it wrote to standard error.
func output(cmd *exec.Cmd, what string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", what, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Kubectl runs kubectl as administrator and returns its standard output.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return output(c.Command(ctx, "kubectl", args...), "kubectl "+strings.Join(args, " "))
}

// Apply gives manifests (YAML or JSON) to kubectl apply.
func (c *Cluster) Apply(ctx context.Context, manifests string) error {
	cmd := c.Command(ctx, "kubectl", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifests)
	_, err := output(cmd, "kubectl apply")
	return err
}

// LoadImage imports an OCI or Docker archive into the image store of every node. It is kept for nodes that join later.
func (c *Cluster) LoadImage(ctx context.Context, archive string) error {
	kept := c.run.path("images", filepath.Base(archive))
	if err := copyFile(kept, archive); err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	f, err := os.Open(kept)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer f.Close()
	cmd := c.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", "-")
	cmd.Stdin = f
	if _, err = output(cmd, "load image "+archive); err != nil {
		return err
	}
	vms, err := c.VMs(ctx)
	if err != nil {
		return err
	}
	for _, v := range vms {
		if err := v.LoadImage(ctx, kept); err != nil {
			return err
		}
	}
	return nil
}

// images lists the archives that every node has: those that the cluster was started with and those loaded since.
func (r Run) images() ([]string, error) {
	b, err := os.ReadFile(r.Options())
	if err != nil {
		return nil, fmt.Errorf("read options: %w", err)
	}
	var o Options
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("parse options %s: %w", r.Options(), err)
	}
	loaded, err := filepath.Glob(r.path("images", "*"))
	if err != nil {
		return nil, err
	}
	for _, l := range loaded {
		if !slices.Contains(o.Images, l) {
			o.Images = append(o.Images, l)
		}
	}
	return o.Images, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// SetMargin sets the kubelet's hard threshold (and its soft one, when there is one) to the given number of bytes under
// the memory that is available now, restarts the kubelet alone and waits until it reports Ready without memory pressure.
// Pods keep running.
func (c *Cluster) SetMargin(ctx context.Context, bytes int64) (Facts, error) {
	return c.run.control(ctx, http.MethodPost, ControlMargin, MarginRequest{Margin: bytes})
}

// StopKubelet stops the kubelet; containers keep running.
func (c *Cluster) StopKubelet(ctx context.Context) error {
	_, err := c.run.control(ctx, http.MethodPost, ControlStopKubelet, nil)
	return err
}

// StartKubelet starts the kubelet again and waits until it reports Ready.
func (c *Cluster) StartKubelet(ctx context.Context) error {
	_, err := c.run.control(ctx, http.MethodPost, ControlStartKubelet, nil)
	return err
}

// StopRuntime stops containerd; containers keep running, and nobody can start or end one.
func (c *Cluster) StopRuntime(ctx context.Context) error {
	_, err := c.run.control(ctx, http.MethodPost, ControlStopRuntime, nil)
	return err
}

// StartRuntime starts containerd again and waits until it listens.
func (c *Cluster) StartRuntime(ctx context.Context) error {
	_, err := c.run.control(ctx, http.MethodPost, ControlStartRuntime, nil)
	return err
}

// Memory reads the machine's memory as its kubelet does, from the kernel, now.
func (c *Cluster) Memory() (node.Memory, error) { return node.ReadMemory("/proc", cgroupMount) }

// Cordon keeps new pods off the node; Uncordon ends that.
func (c *Cluster) Cordon(ctx context.Context) error   { return c.schedulable(ctx, c.node, false) }
func (c *Cluster) Uncordon(ctx context.Context) error { return c.schedulable(ctx, c.node, true) }

// DumpLogs writes the last lines of every component's log; tests call it when they fail.
func (c *Cluster) DumpLogs(w io.Writer, lines int) {
	for _, name := range c.run.Components() {
		fmt.Fprintf(w, "--- last lines of %s ---\n%s", name, Tail(c.run.Log(name), lines))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	vms, err := c.VMs(ctx)
	if err != nil {
		fmt.Fprintln(w, err)
	}
	for _, v := range vms {
		for _, service := range VMServices() {
			fmt.Fprintf(w, "--- last lines of %s on %s ---\n%s", service, v.NodeName(), v.Log(ctx, service, lines))
		}
	}
}

// Components lists the components that have a log.
func (r Run) Components() []string {
	files, err := filepath.Glob(r.path("log", "*.log"))
	if err != nil {
		return nil
	}
	var names []string
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".log"); name != "audit" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Tail returns the last lines of a file, or a line that says why not.
func Tail(name string, lines int) string {
	const most = 256 << 10
	f, err := os.Open(name)
	if err != nil {
		return err.Error() + "\n"
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, err = f.Seek(max(0, end-most), io.SeekStart)
		if err != nil {
			return err.Error() + "\n"
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return err.Error() + "\n"
	}
	return lastLines(b, lines)
}

func lastLines(b []byte, lines int) string {
	all := slices.Collect(bytes.Lines(b))
	return string(bytes.Join(all[max(0, len(all)-lines):], nil))
}
