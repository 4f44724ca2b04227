package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"spillway/agent/brake"
	"spillway/agent/config"
	"spillway/agent/events"
	"spillway/agent/evict"
	"spillway/agent/journal"
	"spillway/agent/kube"
	"spillway/agent/kube/cluster"
	"spillway/agent/ledger"
	"spillway/agent/metrics"
	"spillway/agent/once"
	"spillway/agent/oom"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/preflight"
	"spillway/agent/reclaim"
	"spillway/agent/recording"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/agent/waits"
	"spillway/cgroup"
	"spillway/cri"
)

// livenessAge is how old the loop's last pass may be before the liveness probe fails.
const livenessAge = 30 * time.Second

// DefaultStateDir is where the agent keeps what must survive a restart, and recordings.
const DefaultStateDir = "/var/lib/spillway"

// Options are what the command line and the environment say; Config is what the file says.
type Options struct {
	Config        config.Config
	ConfigFile    string           // where Config was read from, to follow its changes; empty: it does not change
	Level         *slog.LevelVar   // of Logger, set when Config changes; nil: it stays
	NodeName      string           // name of the Node object; required unless Config.Mode is Standalone
	SelfUID       string           // UID of the agent's own pod, never evicted; empty outside a pod
	Kubeconfig    string           // empty: the pod's service account
	EvictAs       string           // kubeconfig file for Eviction calls only; empty: the agent's own credentials
	PauseSwitch   string           // "namespace/name" of the ConfigMap with the pause switch; empty: none
	CgroupRoot    string           // default /sys/fs/cgroup
	ProcRoot      string           // default /proc
	Socket        string           // default status.DefaultSocket
	SocketGroup   int              // GID of those who may ask on it beside root; 0: nobody
	StateDir      string           // default DefaultStateDir
	MetricsListen string           // address for metrics and liveness where Config names none; empty: none
	LockMemory    bool             // keep the process's memory from being reclaimed, and its heap under its cgroup's limit: for a process of its own
	JournalSocket string           // journald's, for the checks of what the agent needs; empty: the usual place
	Journal       *journal.Handler // part of Logger that writes to journald, to follow whether that is there; nil: none
	Kmsg          string           // the kernel's log; default kmsg.DefaultPath
	BTF           string           // external BTF file for the tracer; empty: the kernel's own
	Version       string
	Logger        *slog.Logger // default: discard

	kubepods string // of tests: path of the cgroup of all pods; empty: wherever it is found
}

// Agent is one running agent. New makes it, Run runs it once.
type Agent struct {
	opts  Options
	cfg   config.Config // the loop's, once that runs
	rules policy.Config // of cfg
	log   *slog.Logger
	begin time.Time

	standalone bool

	tree     *cgroup.Tree
	samples  *sampler.Sampler
	waker    *sampler.Waker // nil: none here
	habits   *habits        // nil without a cluster
	timings  *timings       // likewise
	mapper   *podmap.Mapper
	waits    *waits.Reader    // nil: standalone
	runtime  *cri.Client      // nil: none here
	kube     *kube.Client     // nil: standalone
	cluster  *cluster.Reader  // likewise
	evicts   *evict.Manager   // nil: standalone
	reclaims *reclaim.Manager // nil: standalone
	brakes   *brake.Manager   // nil: standalone
	exits    endings          // nil: standalone
	metrics  *metrics.Metrics
	recorder *recording.Writer // nil: nothing is recorded
	ledger   *ledger.Ledger    // nil: standalone
	server   *status.Server

	runtimeView atomic.Pointer[cri.View]
	snapshot    atomic.Pointer[status.Status]
	lastPass    atomic.Int64 // nanoseconds since boot: a step of the clock neither hides a loop that hangs nor makes one
	checks      *preflight.Checker
	current     atomic.Pointer[config.Config] // what cfg is, for other goroutines than the loop's
	oom         *oom.Watch
	kills       chan status.OOMKill
	questions   chan question
	onces       *once.Runs
	configs     chan config.Config // that the file has now
	modes       chan config.Mode   // capacity 1: that the loop changed to
	lookEvery   time.Duration      // at the file
	events      *events.Store      // nil: standalone
	sources     *status.Sources

	loop loop
}

// New checks everything that can be checked without waiting, opens what must be there, and starts nothing. What may
// be missing is named as degraded instead: see status.Source.
func New(opts Options) (*Agent, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.StateDir == "" {
		opts.StateDir = DefaultStateDir
	}
	a := &Agent{opts: opts, cfg: opts.Config, log: opts.Logger, begin: time.Now(), kills: make(chan status.OOMKill, 256), questions: make(chan question, 4), onces: once.New(), configs: make(chan config.Config), modes: make(chan config.Mode, 1)}
	a.standalone = a.cfg.Mode == config.Standalone
	a.current.Store(&opts.Config)
	var err error
	a.rules, err = a.cfg.Policy(kube.ParseSelector)
	if !a.standalone {
		if err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
		if opts.NodeName == "" {
			return nil, errors.New("no node name: set NODE_NAME or --node-name to the name of this node's Node object, or use --standalone")
		}
	}
	a.sources = status.NewSources(a.log, journal.MessageSource)
	a.metrics = metrics.New(opts.Version, opts.Config.Metrics.PodSeries, a.snapshot.Load)
	ok := false
	defer func() {
		if !ok {
			a.close()
		}
	}()
	if a.tree, err = cgroup.Open(cgroup.Options{Root: opts.CgroupRoot, Proc: opts.ProcRoot}); err != nil {
		return nil, fmt.Errorf("open cgroups: %w", err)
	}
	if a.tree.Namespaced() {
		a.sources.Set("cgroup", status.Degraded, "this is the cgroup namespace of a container, not the node's tree: mount the host's /sys/fs/cgroup and name it with --cgroup-root")
	} else {
		a.sources.Set("cgroup", status.OK, fmt.Sprintf("%s, memory controller v%d at %s, ends of processes from %s", a.tree.Mode(), a.tree.MemoryVersion(), a.tree.MemoryRoot(), a.tree.ProcessSource()))
	}
	if err := a.openPreflight(); err != nil {
		return nil, err
	}
	views := status.Views{Status: a.snapshot.Load, Samples: a.window, Preflight: a.checks.Check}
	if !a.standalone {
		views.Explain, views.Recording, views.Once = a.explain, a.copyRecording, a.onces.Ask
		views.Events = &status.EventViews{
			List: func(ctx context.Context, q status.EventQuery) (status.EventList, error) { return a.events.List(ctx, q) },
			Get:  func(ctx context.Context, id string) (status.EventDetail, error) { return a.events.Get(ctx, id) },
		}
	}
	if a.server, err = status.ListenFor(opts.Socket, opts.SocketGroup, views); err != nil {
		return nil, err // a second agent on this node would act twice
	}
	if a.samples, err = sampler.New(sampler.Options{Tree: a.tree, Fastest: a.cfg.Sampling.Fastest, Slowest: a.cfg.Sampling.Slowest, Logger: a.log}); err != nil {
		return nil, err
	}
	a.holdMemory()
	a.openWaker()
	a.openRecorder()
	if a.mapper, err = podmap.New(podmap.Options{
		Tree: a.tree, Clock: a.samples.Now, Logger: a.log,
		Containers: func() []cri.Container { return a.runtimeView.Load().Containers },
		Pods:       a.pods,
		OnChange:   a.track,
		Kubepods:   opts.kubepods,
	}); err != nil {
		return nil, err
	}
	if err := a.openOOM(); err != nil {
		return nil, err
	}
	a.openRuntime()
	if err := a.openLedger(); err != nil {
		return nil, err
	}
	if err := a.openEvents(); err != nil {
		return nil, err
	}
	if err := a.openCluster(); err != nil {
		return nil, err
	}
	if !a.standalone {
		if a.waits, err = waits.New(waits.Options{Tree: a.tree, Map: a.mapper.Map}); err != nil {
			return nil, err
		}
	}
	if err := a.openExits(); err != nil {
		return nil, err
	}
	a.loop.init(a)
	ok = true
	return a, nil
}

func (a *Agent) openRuntime() {
	a.runtimeView.Store(&cri.View{})
	if a.standalone || a.cfg.CRI.Endpoint == "none" {
		a.sources.Set("cri", status.Off, "not used")
		return
	}
	client, err := cri.Dial(cri.Options{Endpoint: a.cfg.CRI.Endpoint, PollOnly: !a.cfg.CRI.Events, Logger: a.log})
	if err != nil {
		a.sources.Set("cri", status.Degraded, err.Error())
		return
	}
	a.runtime = client
	a.sources.Set("cri", status.Degraded, "not connected yet")
}

func (a *Agent) openCluster() error {
	if a.standalone {
		a.sources.Set("api-server", status.Off, "standalone")
		a.sources.Set("kubelet-config", status.Off, "standalone")
		return nil
	}
	client, err := kube.New(kube.Options{Kubeconfig: a.opts.Kubeconfig, NodeName: a.opts.NodeName, UserAgent: "spillway/" + a.opts.Version,
		PauseConfigMap: a.opts.PauseSwitch, EvictKubeconfig: a.opts.EvictAs, Logger: a.log})
	if err != nil {
		return fmt.Errorf("%w (use --standalone on a machine without Kubernetes)", err)
	}
	a.kube = client
	a.cluster = cluster.New(cluster.Options{Client: client, Settings: clusterSettings(&a.cfg), V2: a.tree.MemoryVersion() == 2, Source: a.sources.Set, Logger: a.log})
	client.PauseFor(config.PausedBeside(a.opts.ConfigFile, kube.PauseKey)) // before the first look of watchConfig
	a.sources.Set("api-server", status.Degraded, "not connected yet")
	a.sources.Set("kubelet-config", status.Degraded, "not read yet")
	a.openHabits()
	a.openTimings()
	a.evicts, err = evict.New(evict.Options{
		Limits: evictLimits(&a.cfg), Store: a.ledger.Document(evictionsDocument),
		Look: client.Replacement, Node: a.opts.NodeName,
		Call: func(ctx context.Context, r evict.Request) policy.Answer {
			req := kube.EvictRequest{Namespace: r.Namespace, Name: r.Name, UID: r.UID, DryRun: r.DryRun}
			if !r.Shorten {
				return client.Evict(ctx, req)
			}
			grace := evict.ShortGrace
			req.Grace = &grace
			answer := client.Evict(ctx, req)
			if answer.Verb == policy.Accepted {
				answer = a.stopContainers(ctx, r.UID, answer)
			}
			return answer
		},
	})
	if err != nil {
		return err
	}
	if err := a.openReclaim(); err != nil {
		return err
	}
	if err := a.openBrake(); err != nil {
		return err
	}
	if name := a.evicts.SetAside(); name != "" {
		a.log.Error("eviction state could not be used: starting with a full cooldown", "set_aside", name)
	}
	return nil
}

// pods returns the API server's view of this node's pods.
func (a *Agent) pods() []policy.Pod {
	if a.cluster == nil {
		return nil
	}
	return a.kube.Pods().Pods
}

// track tells the sampler which cgroups to follow.
func (a *Agent) track(m *podmap.Map) {
	if a.waker != nil {
		a.waker.Watch(m.Kubepods)
	}
	targets := make([]sampler.Target, 0, len(m.Pods))
	for i := range m.Pods {
		p := &m.Pods[i]
		t := sampler.Target{Path: p.Path, ID: p.CgroupID, Key: p.UID}
		for _, c := range p.Containers {
			t.Leaves = append(t.Leaves, sampler.Leaf{Path: c.Path, ID: c.CgroupID, Key: c.ID})
		}
		targets = append(targets, t)
	}
	if a.standalone && len(targets) == 0 {
		targets = a.topGroups()
	}
	a.samples.Track(targets)
}

// topGroups are the cgroups below the root, for a machine without pods.
func (a *Agent) topGroups() []sampler.Target {
	children, err := a.tree.Children("/")
	if err != nil {
		a.log.Warn("listing cgroups failed", "error", err)
		return nil
	}
	var out []sampler.Target
	for _, c := range children {
		out = append(out, sampler.Target{Path: c.Path, ID: c.ID, Key: c.Path})
	}
	return out
}

// Run works until ctx ends, then stops everything in order and returns nil. Another end is an error.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	start := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				errs <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	a.log.Info("agent starts", journal.MessageStart, "version", a.opts.Version, "node", a.opts.NodeName, "mode", string(a.cfg.Mode), "cgroup", a.tree.Mode().String(), "fastest", a.cfg.Sampling.Fastest.String(), "slowest", a.cfg.Sampling.Slowest.String())
	start("sampler", a.samples.Run)
	if a.waker != nil {
		start("waker", a.waker.Run)
	}
	start("podmap", a.mapper.Run)
	start("status socket", a.server.Run)
	start("oom kills", a.oom.Run)
	if a.runtime != nil {
		start("cri", a.followRuntime)
	}
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx)) // until all that writes to the ledger has ended
	defer stopKeeping()
	var keeper sync.WaitGroup
	if a.ledger != nil {
		keeper.Go(func() {
			if err := a.ledger.Run(keeping); err != nil {
				errs <- fmt.Errorf("ledger: %w", err)
			}
		})
	}
	start("preflight", a.checks.Run)
	if a.cluster != nil {
		start("kube", a.kube.Run)
		start("cluster", a.cluster.Run)
		start("evict", a.evicts.Run)
		start("habits", a.habits.run)
		start("mode", a.keepMode)
		start("replacements", a.evicts.RunLooks)
	}
	if a.exits != nil {
		start("exits", a.exits.Run)
	}
	if a.reclaims != nil {
		start("reclaim", a.reclaims.Run)
	}
	if a.brakes != nil {
		start("brake", a.brakes.Run)
	}
	if a.recorder != nil {
		start("recording", a.recorder.Run)
	}
	if address := a.metricsAddress(); address != "" {
		// A taken port degrades the agent, it does not stop it; it is tried again.
		start("metrics", func(ctx context.Context) error { return a.serveMetrics(ctx, address) })
	} else {
		a.sources.Set("metrics", status.Off, "no address given")
	}
	if a.events != nil {
		start("events", func(context.Context) error { return a.events.Run() }) // ends with the loop
	}
	start("journald", a.followJournal)
	if a.waits != nil {
		start("pod CPU", a.waits.Run)
	}
	start("loop", a.loop.run)
	if a.opts.ConfigFile != "" {
		start("config", a.watchConfig)
	} else {
		a.sources.Set("config", status.Off, "no file given: all settings have their defaults")
	}

	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	cancel()
	wg.Wait()
	a.keepLearned()
	stopKeeping()
	keeper.Wait()
	a.close()
	a.log.Info("agent stopped", journal.MessageStop)
	return err
}

// metricsAddress is where metrics are served, "" where they are not.
func (a *Agent) metricsAddress() string {
	switch listen := a.cfg.Metrics.Listen; listen {
	case "":
		return a.opts.MetricsListen
	case "none":
		return ""
	default:
		return listen
	}
}

func (a *Agent) serveMetrics(ctx context.Context, address string) error {
	for {
		l, err := metrics.Listen(ctx, address)
		if err == nil {
			a.sources.Set("metrics", status.OK, address)
			err = a.metrics.Serve(ctx, l, a.Alive)
		}
		if ctx.Err() != nil {
			return nil
		}
		a.sources.Set("metrics", status.Degraded, err.Error())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Second):
		}
	}
}

// Alive reports an error when the loop has not finished a pass for 30 s.
func (a *Agent) Alive() error {
	if age := a.samples.Now() - time.Duration(a.lastPass.Load()); age > livenessAge {
		return fmt.Errorf("the loop's last pass is %.0f s old", age.Seconds())
	}
	return nil
}

// followRuntime keeps the newest view of the container runtime.
func (a *Agent) followRuntime(ctx context.Context) error {
	revision := uint64(0)
	return a.runtime.Watch(ctx, func(v cri.View) {
		old := a.runtimeView.Swap(&v)
		if a.exits != nil {
			a.exits.Follow(old, &v)
		}
		switch {
		case v.Err != "":
			a.sources.Set("cri", status.Degraded, v.Err+"; pods are mapped by cgroup names and the API server alone")
		case v.Synced:
			how := "events"
			if !v.Events {
				how = "polling: no event stream"
			}
			a.sources.Set("cri", status.OK, how)
		}
		if v.Revision != revision {
			revision = v.Revision
			a.mapper.Hint()
		}
	})
}

// close releases what New opened; goroutines have ended or never began.
func (a *Agent) close() {
	if a.server != nil {
		a.server.Close()
	}
	if a.waker != nil {
		a.waker.Close()
	}
	if a.oom != nil {
		a.oom.Close()
	}
	if a.runtime != nil {
		a.runtime.Close()
	}
	if a.cluster != nil {
		a.kube.Close()
	}
	if a.ledger != nil {
		if err := a.ledger.Close(); err != nil {
			a.log.Error("ledger not closed", "error", err)
		}
	}
	if a.tree != nil {
		a.tree.Close()
	}
}

// clusterSettings are the settings of what is read of the cluster.
func clusterSettings(c *config.Config) cluster.Settings {
	return cluster.Settings{Kubelet: cluster.Kubelet(c.Kubelet), Excluded: c.ExcludedNodes}
}
