// Package preflight checks every prerequisite of the agent for real: it opens, asks and reads what an agent with these options
// would, and closes all of it again. An agent may run at the same time.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"spillway/agent/journal"
	"spillway/agent/kube"
	"spillway/agent/pressure"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/cri"
	"spillway/ebpf/oomkill"
	"spillway/ebpf/oomkill/kmsg"
)

const (
	timeout    = 30 * time.Second
	ledgerRoom = 64 << 20 // what the ledger and a recording of the default size may come to, and some
)

// Options say what an agent would use.
type Options struct {
	CgroupRoot    string // default /sys/fs/cgroup
	ProcRoot      string // default /proc
	BTF           string // external BTF file for the tracer; empty: the kernel's own
	Kmsg          string // the kernel's log; default kmsg.DefaultPath
	StateDir      string // of the ledger and the recording
	JournalSocket string // journald's; empty: the usual place
	NodeName      string
	Kubeconfig    string // empty: the pod's service account
	EvictAs       string // kubeconfig file for Eviction calls only; empty: the same credentials
	PauseSwitch   string // "namespace/name" of its ConfigMap; empty: none
	Version       string

	Settings func() Settings        // read for each round of checks
	MayLock  func() error           // why memory may not be locked
	OOM      func() status.OOMWatch // of the agent that checks for itself; nil: there is none, and the tracer is tried

	Logger *slog.Logger // default: discard
}

// Settings are what the config file says, which may change.
type Settings struct {
	Standalone   bool    // no cluster is needed
	Endpoint     string  // of the container runtime; none: not used
	EvictPercent float64 // of allocatable memory in use, from which pods are evicted
	// Thresholds finds the kubelet's, and says where. v2: the root memory cgroup is one of v2.
	Thresholds func(ctx context.Context, c *kube.Client, n kube.Node, v2 bool) (t []pressure.Threshold, source string, err error)
}

// Checker makes the checks, one round at a time, and keeps the newest result.
type Checker struct {
	opts   Options
	mu     sync.Mutex // held during a round: each reads much
	newest atomic.Pointer[[]status.Check]
}

// New makes a Checker, and checks nothing yet.
func New(o Options) (*Checker, error) {
	if o.Settings == nil || o.MayLock == nil {
		return nil, errors.New("check prerequisites: Settings and MayLock are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Checker{opts: o}, nil
}

// Run makes one round.
func (c *Checker) Run(ctx context.Context) error {
	c.Check(ctx)
	return nil
}

// Check makes one round, logs what is missing, and keeps the result.
func (c *Checker) Check(ctx context.Context) []status.Check {
	c.mu.Lock()
	defer c.mu.Unlock()
	checks := c.inspect(ctx)
	if ctx.Err() != nil {
		return checks // the end of the agent, or of the request, is no finding
	}
	c.newest.Store(&checks)
	for _, k := range checks {
		if k.State != status.OK {
			c.opts.Logger.Warn("preflight: "+k.Name+" is "+k.State, "detail", k.Detail, "means", k.Means, "fix", k.Fix)
		}
	}
	return checks
}

// Newest is the result of the newest round, nil before the first.
func (c *Checker) Newest() []status.Check {
	if checks := c.newest.Load(); checks != nil {
		return *checks
	}
	return nil
}

// inspection is one round.
type inspection struct {
	Options
	settings Settings
	ctx      context.Context
	tree     *cgroup.Tree // nil: cannot be opened
	checks   []status.Check
}

func (c *Checker) inspect(ctx context.Context) []status.Check {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	p := &inspection{Options: c.opts, settings: c.opts.Settings(), ctx: ctx}
	p.cgroups()
	if p.tree != nil {
		defer p.tree.Close()
		p.readings()
		p.wakes()
	}
	p.tracer()
	p.memory()
	p.state()
	p.journald()
	if !p.settings.Standalone {
		p.runtime()
		p.cluster()
	}
	return p.checks
}

func (p *inspection) add(name, state, detail, means, fix string) {
	p.checks = append(p.checks, status.Check{Name: name, State: state, Detail: strings.ReplaceAll(detail, "\n", "; "), Means: means, Fix: fix})
}

func (p *inspection) ok(name, format string, args ...any) {
	p.add(name, status.OK, fmt.Sprintf(format, args...), "", "")
}

func (p *inspection) cgroups() {
	const name, fix = "cgroup", "mount the host's /sys/fs/cgroup into the container, and name it with --cgroup-root"
	tree, err := cgroup.Open(cgroup.Options{Root: p.CgroupRoot, Proc: p.ProcRoot})
	if err != nil {
		p.add(name, status.Failed, err.Error(), "nothing can be measured: the agent does not start", fix)
		return
	}
	p.tree = tree
	if tree.Namespaced() {
		p.add(name, status.Failed, "this is the cgroup namespace of a container, not the node's tree", "the readings would be those of one container: nobody is evicted", fix)
		return
	}
	detail := fmt.Sprintf("%s, memory controller v%d at %s, ends of processes from %s", tree.Mode(), tree.MemoryVersion(), tree.MemoryRoot(), tree.ProcessSource())
	if p.settings.Standalone {
		p.ok(name, "%s", detail)
		return
	}
	kubepods, err := tree.Kubepods()
	switch {
	case err != nil || kubepods == "":
		p.add(name, status.Failed, fmt.Sprintf("%s, no kubepods cgroup: %v", detail, err), "no pod can be measured: nobody is evicted", "is this a node, and does its kubelet run? If its cgroupRoot is not /, mount that tree")
	default:
		driver := "cgroupfs"
		if strings.HasSuffix(path.Base(kubepods), ".slice") {
			driver = "systemd"
		}
		p.ok(name, "%s, pods at %s, driver %s", detail, kubepods, driver)
	}
}

// readings are the kernel's files that decisions rest on.
func (p *inspection) readings() {
	root, err := p.tree.Group("/")
	var m cgroup.Memory
	if err == nil {
		defer root.Close()
		err = root.Memory(&m)
	}
	if _, known := m.WorkingSet.Bytes(); err != nil || !known {
		p.add("memory", status.Failed, fmt.Sprintf("working set of the root cgroup: %v", err), "the kubelet's figure cannot be told: nobody is evicted", "give read access to the memory controller's files")
	} else {
		p.ok("memory", "working set of the node %s", status.Size(float64(uint64(m.WorkingSet))))
	}
	var psi cgroup.Pressure
	if err := p.tree.NodePressure(&psi); err != nil {
		p.add("psi", status.Degraded, err.Error(), "stalls are not seen; decisions rest on the slope alone, as they mostly do", "boot the kernel with psi=1 (CONFIG_PSI)")
	} else {
		p.ok("psi", "/proc/pressure/memory")
	}
}

func (p *inspection) wakes() {
	w, err := p.tree.NewWaker(cgroup.WakerOptions{})
	if err != nil {
		p.add("wake-up", status.Degraded, err.Error(), "sampling follows the headroom alone: a fast leak is seen up to a second later", "PSI triggers need kernel 5.2 with psi=1; windows under 2 s, which are not a multiple of that, need CAP_SYS_RESOURCE")
		return
	}
	defer w.Close()
	var active []string
	for _, s := range w.Sources() {
		if s.Active {
			active = append(active, string(s.Kind))
		}
	}
	p.ok("wake-up", "%s", strings.Join(active, ", "))
}

func (p *inspection) tracer() {
	if p.OOM != nil { // its own says more than a second one would, which is not cheap to load
		p.ladder(p.OOM())
		return
	}
	tracer, err := oomkill.Open(oomkill.Options{BTF: p.BTF})
	if err == nil {
		defer tracer.Close()
		p.ok("oom-tracer", "BPF, %s", tracer.Hook())
		return
	}
	lower := "memory.events or oom_control, and vmstat"
	if log, lerr := kmsg.Open(p.Kmsg); lerr == nil {
		log.Close()
		lower = "the kernel's log, and counters"
	}
	fix := "see deploy/docs/oom-kills.md"
	var unsupported *oomkill.UnsupportedError
	var refused *oomkill.PermissionError
	switch {
	case errors.As(err, &unsupported) && unsupported.Remedy != "":
		fix = unsupported.Remedy
	case errors.As(err, &refused) && refused.Remedy != "":
		fix = refused.Remedy
	}
	p.add("oom-tracer", status.Degraded, err.Error(), "OOM kills are seen by "+lower+": later, and with less known of each", fix)
}

// ladder tells how the agent sees OOM kills now. Its first rung is BPF.
func (p *inspection) ladder(w status.OOMWatch) {
	active, name, higher := slices.IndexFunc(w.Rungs, func(r status.OOMRung) bool { return r.State == "active" }), "", w.Rungs
	switch {
	case active == 0:
		p.ok("oom-tracer", "BPF, %s", w.Rungs[0].Detail)
		return
	case active > 0:
		name, higher = w.Rungs[active].Name, w.Rungs[:active]
	}
	detail, fix := "active: "+name, ""
	for _, r := range higher {
		detail += fmt.Sprintf("; no %s: %s", r.Name, r.Detail)
		fix = strings.TrimPrefix(fix+"; "+r.Remedy, "; ")
	}
	p.add("oom-tracer", status.Degraded, detail, "OOM kills are seen by "+name+": later, and with less known of each", fix)
}

func (p *inspection) memory() {
	if err := p.MayLock(); err != nil {
		p.add("own-memory", status.Degraded, err.Error(), "when memory is short, the agent waits for its own pages", "add the capability IPC_LOCK, or raise RLIMIT_MEMLOCK to unlimited")
	} else {
		p.ok("own-memory", "may be locked")
	}
}

// state is the folder of the ledger and of the recording.
func (p *inspection) state() {
	const name = "state"
	dir := p.StateDir
	if p.settings.Standalone {
		return
	}
	fix := "mount a folder of the node's disk at " + dir + ", or name another one with --state-dir"
	f, err := os.CreateTemp(dir, ".preflight-")
	for errors.Is(err, os.ErrNotExist) && filepath.Dir(dir) != dir { // the agent would make it
		dir = filepath.Dir(dir)
		f, err = os.CreateTemp(dir, ".preflight-")
	}
	if err == nil {
		_, err = f.Write(make([]byte, 4096))
		err = errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
	}
	var fs unix.Statfs_t
	if err == nil {
		err = unix.Statfs(dir, &fs)
	}
	free := uint64(fs.Bavail) * uint64(fs.Bsize)
	switch {
	case err != nil:
		p.add(name, status.Failed, err.Error(), "what must survive a restart cannot be written: nobody is evicted", fix)
	case free < ledgerRoom:
		p.add(name, status.Degraded, fmt.Sprintf("%s free in %s", status.Size(float64(free)), dir), "the ledger or the recording may not be written: nobody is evicted then", "free at least "+status.Size(ledgerRoom)+" there")
	default:
		p.ok(name, "%s free in %s", status.Size(float64(free)), dir)
	}
}

func (p *inspection) journald() {
	h, err := journal.Open(p.JournalSocket)
	if err != nil {
		p.add("journald", status.Degraded, err.Error(), "the log goes to stderr only", "mount /run/systemd/journal where the node has journald")
		return
	}
	h.Close()
	p.ok("journald", "native socket")
}

func (p *inspection) runtime() {
	const name = "cri"
	if p.settings.Endpoint == "none" {
		p.add(name, status.Degraded, "not used: cri.endpoint is none", "containers have no names of their own, and a hang of the runtime is not seen", "")
		return
	}
	client, err := cri.Dial(cri.Options{Endpoint: p.settings.Endpoint, PollOnly: true})
	var v cri.Version
	var containers []cri.Container
	began := time.Now()
	if err == nil {
		defer client.Close()
		if v, err = client.Version(p.ctx); err == nil {
			containers, err = client.List(p.ctx)
		}
	}
	if err != nil {
		p.add(name, status.Degraded, err.Error(), "pods are mapped by cgroup names and pod status; why a container ended is known less surely", "mount the runtime's folder, and name its socket in cri.endpoint")
		return
	}
	p.ok(name, "%s %s, %d containers in %s", v.Runtime, v.Version, len(containers), time.Since(began).Round(time.Millisecond))
}

func (p *inspection) cluster() {
	if p.NodeName == "" {
		p.add("api-server", status.Failed, "no node name", "the agent does not start", "set NODE_NAME or --node-name to the name of this node's Node object")
		return
	}
	client, err := kube.New(kube.Options{Kubeconfig: p.Kubeconfig, NodeName: p.NodeName, UserAgent: "spillway-preflight/" + p.Version,
		PauseConfigMap: p.PauseSwitch, EvictKubeconfig: p.EvictAs})
	if err != nil {
		p.add("api-server", status.Failed, err.Error(), "nobody is evicted", "run it in a pod with a service account, or name a kubeconfig with --kubeconfig")
		return
	}
	defer client.Close()
	node, err := client.Node(p.ctx)
	if err != nil {
		p.add("api-server", status.Failed, err.Error(), "nobody is evicted", "check network, credentials and the node's name")
		return
	}
	p.ok("api-server", "node %s, kubelet %s, allocatable %s", p.NodeName, node.KubeletVersion, status.Size(float64(node.Allocatable)))
	p.rights(client)
	if scope, err := client.OwnNodeScope(p.ctx); err != nil {
		p.add("own-node-scope", status.Degraded, err.Error(), "the agent keeps to its own node, but the API server does not hold it to that", "apply deploy/base again (Kubernetes 1.30 or newer), or use the overlay node-identity")
	} else {
		p.ok("own-node-scope", "%s", scope)
	}
	p.kubelet(client, node)
	for _, api := range []struct{ name, group, means, fix string }{
		{"api-budgets", "policy/v1", "evictions cannot be asked for: the Eviction API is of this group", "Kubernetes 1.22 or newer is needed"},
		{"api-metrics", "metrics.k8s.io/v1beta1", "whether there is room elsewhere is told by requests alone", "install metrics-server"},
	} {
		served, err := client.Serves(p.ctx, api.group)
		switch {
		case err != nil:
			p.add(api.name, status.Degraded, err.Error(), api.means, api.fix)
		case !served:
			p.add(api.name, status.Degraded, api.group+" is not served", api.means, api.fix)
		default:
			p.ok(api.name, "%s", api.group)
		}
	}
}

// rights asks for each; those that are missing are named together, by what they stop.
func (p *inspection) rights(client *kube.Client) {
	var needed, useful []string
	all := client.Rights()
	for _, r := range all {
		yes, why, err := client.Allowed(p.ctx, r)
		if err != nil {
			p.add("permissions", status.Degraded, err.Error(), "what the agent may do is not known", "SelfSubjectAccessReviews are open to every user by default: check the network")
			return
		}
		if yes {
			continue
		}
		text := fmt.Sprintf("%s (%s)", r, r.For)
		if why != "" {
			text += ": " + why
		}
		if r.Needed {
			needed = append(needed, text)
		} else {
			useful = append(useful, text)
		}
	}
	const fix = "apply deploy/base/rbac.yaml"
	missing := strings.Join(slices.Concat(needed, useful), "; ")
	switch {
	case len(needed) > 0:
		p.add("permissions", status.Failed, "missing: "+missing, "nobody is evicted", fix)
	case len(useful) > 0:
		p.add("permissions", status.Degraded, "missing: "+missing, "less is known of candidates", fix)
	default:
		p.ok("permissions", "all %d", len(all))
	}
}

// kubelet holds the thresholds of the kubelet against ours: an agent that acts later than the kubelet is of no use.
func (p *inspection) kubelet(client *kube.Client, node kube.Node) {
	const name = "kubelet-thresholds"
	thresholds, source, err := p.settings.Thresholds(p.ctx, client, node, p.tree != nil && p.tree.MemoryVersion() == 2)
	if err != nil {
		p.add(name, status.Degraded, err.Error(), "only an OOM kill of the node is guarded against", "give the right nodes/configz, mount the kubelet's config file, or set kubelet.memoryAvailable")
		return
	}
	i := slices.IndexFunc(thresholds, func(t pressure.Threshold) bool { return t.Hard && t.Signal == pressure.MemoryAvailable })
	if i < 0 {
		p.add(name, status.Degraded, "the kubelet has no hard threshold for memory.available ("+source+")", "only an OOM kill of the node is guarded against", "set evictionHard in the kubelet's configuration")
		return
	}
	limit := float64(thresholds[i].Bytes)
	if limit == 0 {
		limit = thresholds[i].Percent / 100 * float64(node.Allocatable)
	}
	evict := p.settings.EvictPercent
	room := (1 - evict/100) * float64(node.Allocatable)
	if room < 64<<20 {
		p.add(name, status.Degraded, fmt.Sprintf("hard threshold %s (%s); thresholds.evictPercent %v leaves %s above it", status.Size(limit), source, evict, status.Size(room)),
			"a slow leak is the kubelet's to end; a fast one is still answered by its time to the threshold", "lower thresholds.evictPercent")
		return
	}
	p.ok(name, "hard threshold %s (%s); ours is %s before it, earlier for what grows fast", status.Size(limit), source, status.Size(room))
}
