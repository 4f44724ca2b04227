package cluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"spillway/test/cluster/cache"
)

// Defaults of Options.
const (
	DefaultName   = "dev"
	DefaultMargin = 2 << 30
	nodeName      = "node1"
)

// WorkloadImage is the image of test/workload, which every node has; it is the pause image too. It also holds /probe,
// which asks the API server something with the pod's service account.
const WorkloadImage = "localhost/spillway-workload:1"

// Options describe a cluster. The zero value is a working one.
type Options struct {
	// Name tells runs apart: the run folder is spillway-cluster-<name> in the temporary folder. Empty means "dev".
	// Only one cluster can run on a machine at a time, because the kubelet's cgroups have one place (/kubepods).
	Name string
	// Margin is how far under the memory available at start the kubelet's hard threshold is set, in bytes: how much
	// a test can fill before the kubelet evicts. 0 means 2 GiB.
	Margin int64
	// SoftMargin, when not 0, sets a soft threshold the same way; it must be smaller than Margin. SoftGrace is its
	// grace period, 0 means 30 s.
	SoftMargin int64
	SoftGrace  time.Duration
	// SystemReserved and KubeReserved are the kubelet's, such as {"memory": "1Gi"}.
	SystemReserved map[string]string
	KubeReserved   map[string]string
	// KubeletExtra replaces top-level fields of the kubelet's configuration, by their JSON names. A replaced
	// evictionHard has no threshold that follows Margin.
	KubeletExtra map[string]any
	// NoAdmissionPolicies makes an API server that knows no ValidatingAdmissionPolicy, as before Kubernetes 1.30.
	NoAdmissionPolicies bool
	// Images are OCI archives to load besides the workload's.
	Images []string
	// Detach leaves the cluster running when this process ends. Otherwise its end, by any cause, takes the cluster
	// down.
	Detach bool
	// Wait is how long to wait for another cluster of this machine to end before giving up. [Start] waits 15 min when
	// it is 0, because Go runs the tests of several packages at once.
	Wait time.Duration
	// ReadyTimeout bounds the start after everything is built; 0 means 2 min.
	ReadyTimeout time.Duration
	// Progress receives lines while a long step runs; nil means standard error.
	Progress io.Writer `json:"-"`
}

func (o *Options) complete() error {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if !regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`).MatchString(o.Name) {
		return fmt.Errorf("cluster name %q: want at most 32 lower-case letters, digits and dashes", o.Name)
	}
	if o.Margin == 0 {
		o.Margin = DefaultMargin
	}
	if o.Margin < 0 || o.SoftMargin < 0 || min(o.SoftGrace, o.Wait, o.ReadyTimeout) < 0 {
		return errors.New("cluster options: a negative margin or time")
	}
	if o.SoftMargin >= o.Margin {
		return fmt.Errorf("soft margin %d: not under the margin %d", o.SoftMargin, o.Margin)
	}
	if o.SoftGrace == 0 {
		o.SoftGrace = 30 * time.Second
	}
	if o.ReadyTimeout == 0 {
		o.ReadyTimeout = 2 * time.Minute
	}
	if o.Progress == nil {
		o.Progress = os.Stderr
	}
	for i, name := range o.Images {
		abs, err := filepath.Abs(name)
		if err != nil {
			return fmt.Errorf("image archive %s: %w", name, err)
		}
		o.Images[i] = abs
	}
	return nil
}

// CacheDir is where built programs are kept: $SPILLWAY_CACHE, or spillway in the user's cache folder.
func CacheDir() (string, error) { return cache.Dir() }

// Run is the folder that holds everything of one cluster on the machine's own disk; it outlives the cluster until the
// next one of the same name starts.
type Run struct{ Dir string }

// RunOf returns the run folder of the named cluster.
func RunOf(name string) (Run, error) {
	o := Options{Name: name}
	if err := o.complete(); err != nil {
		return Run{}, err
	}
	dir, err := filepath.Abs(filepath.Join(os.TempDir(), "spillway-cluster-"+o.Name))
	if err != nil {
		return Run{}, fmt.Errorf("find run folder: %w", err)
	}
	// The node has folders of its own in these places, which would hide the run folder from it.
	for _, hidden := range []string{"/run/", "/var/run/", "/var/lib/", "/etc/", "/opt/", "/var/log/"} {
		if strings.HasPrefix(dir, hidden) {
			return Run{}, fmt.Errorf("run folder %s: cannot be under %s (set TMPDIR)", dir, hidden)
		}
	}
	return Run{Dir: dir}, nil
}

func (r Run) path(elem ...string) string { return filepath.Join(append([]string{r.Dir}, elem...)...) }

// The parts of a run folder.
func (r Run) Options() string    { return r.path("options.json") }
func (r Run) State() string      { return r.path("state.json") }
func (r Run) Kubeconfig() string { return r.path("kubeconfig") }
func (r Run) Control() string    { return r.path("control.sock") }
func (r Run) Logs() string       { return r.path("log") }
func (r Run) Audit() string      { return r.path("log", "audit.log") }
func (r Run) PodLogs() string    { return r.path("log", "pods") }
func (r Run) PKI() string        { return r.path("pki") }
func (r Run) Disk() string       { return r.path("disk") }
func (r Run) AgentState() string { return r.path("agent") }

// Log is the log file of one component.
func (r Run) Log(component string) string { return r.path("log", component+".log") }

// machineLock is held by a cluster's first process for as long as it lives.
func machineLock() string { return filepath.Join(os.TempDir(), "spillway-cluster.lock") }
