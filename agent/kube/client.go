package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

const (
	evictTimeout   = 3 * time.Second  // one Eviction call, Warm, one /configz
	requestTimeout = 5 * time.Second  // one GET or one Event
	warmFor        = 60 * time.Second // after its last use, a connection counts as open
	listTimeout    = 30 * time.Second // the pods of one node, when the server cannot stream them
)

// Options configure a Client.
type Options struct {
	// Kubeconfig is a file whose current context is used. Empty means the service account of the pod we run in.
	Kubeconfig string
	// NodeName is this node's name in the API, required: pods, lease and node are looked up by it.
	NodeName string
	// UserAgent is sent with every request and names the field manager. Empty means "spillway".
	UserAgent string
	// ServiceAccountDir holds token and ca.crt when Kubeconfig is empty.
	// Empty means /var/run/secrets/kubernetes.io/serviceaccount.
	ServiceAccountDir string
	// EvictKubeconfig is a file whose current context is used for Eviction calls only, such as the kubelet's own: then
	// NodeRestriction holds the agent to its own node. Empty: the credentials of everything else.
	EvictKubeconfig string
	// PauseConfigMap is "namespace/name" of the ConfigMap whose key PauseKey stops all evictions. Empty: no switch.
	PauseConfigMap string
	// Logger takes watch and Event faults, on change and once a minute. Nil discards them.
	Logger *slog.Logger
}

// Client talks to one API server about one node. All methods may be called at the same time.
type Client struct {
	node string
	log  *slog.Logger
	wire wire
	cfg  *rest.Config // as loaded: the kubelet's client is made from its CA and token
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	reads  *rest.RESTClient // watch, list, GET
	evicts *rest.RESTClient // Eviction and Warm only: own connection, no limiter
	posts  *rest.RESTClient // Events: the connection of reads, a limiter of its own
	http   []*http.Client

	tokenDir string // of the service account; empty with a kubeconfig
	evictAs  string // Options.EvictKubeconfig
	evictCfg *rest.Config

	pods      *podStore
	pause     *pauseStore // nil: no switch
	pausedFor atomic.Pointer[string]
	workloads *answers[workloadKey, controller]
	budgets   *answers[string, budgetList] // by namespace
	scalers   *answers[string, scalerList] // by namespace
	nodes     *answers[struct{}, nodeList]
	names     *answers[struct{}, nodeNames]
	named     *answers[string, string]               // of replacements, by UID
	uses      *answers[time.Time, map[string]uint64] // working set by node, bytes; by the list of nodes
	zone      atomic.Pointer[string]                 // of this node, as Node saw it
	events    chan queuedEvent
	dropped   atomic.Uint64
	eventSeq  atomic.Uint64
	running   atomic.Bool
	evictUsed atomic.Pointer[time.Time] // when the connection of evicts last worked

	// Shortened by tests only.
	evictTimeout time.Duration
	backoff      wait.Backoff // between attempts to watch
	eventRetry   time.Duration
}

var namespacedName = regexp.MustCompile(`^[a-z0-9-]+/[a-z0-9.-]+$`)

// New validates o and reads the credentials. It makes no network call: an API server that is away is no error here.
func New(o Options) (*Client, error) {
	if o.NodeName == "" {
		return nil, errors.New("kube client: node name is empty: set NODE_NAME from the pod's spec.nodeName (downward API), or name it in the configuration")
	}
	if o.PauseConfigMap != "" && !namespacedName.MatchString(o.PauseConfigMap) {
		return nil, fmt.Errorf("kube client: pause configmap %q, want namespace/name", o.PauseConfigMap)
	}
	if o.UserAgent == "" {
		o.UserAgent = "spillway"
	}
	if o.ServiceAccountDir == "" {
		o.ServiceAccountDir = defaultServiceAccountDir
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	cfg, err := loadConfig(o)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = o.UserAgent
	c := &Client{
		node:         o.NodeName,
		log:          o.Logger,
		wire:         newWire(),
		dial:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		cfg:          cfg,
		pods:         newPodStore(),
		workloads:    newAnswers[workloadKey, controller](workloadTTL, workloadMax),
		budgets:      newAnswers[string, budgetList](budgetTTL, namespaceMax),
		scalers:      newAnswers[string, scalerList](scalerTTL, namespaceMax),
		nodes:        newAnswers[struct{}, nodeList](nodeTTL, 1),
		names:        newAnswers[struct{}, nodeNames](namesTTL, 1),
		named:        newAnswers[string, string](namedTTL, namedPods),
		uses:         newAnswers[time.Time, map[string]uint64](nodeTTL, 1),
		events:       make(chan queuedEvent, eventQueue),
		evictTimeout: evictTimeout,
		// The cap keeps the time without fresh pods short once the API server is back; the jitter keeps the nodes of a
		// cluster apart.
		backoff:    wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6, Cap: 10 * time.Second},
		eventRetry: time.Second,
	}
	c.evictCfg, c.evictAs = cfg, o.EvictKubeconfig
	if o.Kubeconfig == "" {
		c.tokenDir = o.ServiceAccountDir
	}
	if o.EvictKubeconfig != "" {
		if c.evictCfg, err = kubeconfigFile(o.EvictKubeconfig); err != nil {
			return nil, fmt.Errorf("credentials for evictions: %w", err)
		}
		c.evictCfg.UserAgent = o.UserAgent
	}
	if o.PauseConfigMap != "" {
		c.pause = &pauseStore{name: o.PauseConfigMap}
	}
	if err := c.connect(); err != nil {
		return nil, fmt.Errorf("kube client %s: %w", cfg.Host, err)
	}
	return c, nil
}

// connect builds the REST clients over two transports: an eviction never queues behind a read or an Event.
func (c *Client) connect() error {
	base := rest.CopyConfig(c.cfg)
	base.NegotiatedSerializer = c.wire.codecs
	base.WarningHandler = rest.NoWarnings{}
	base.GroupVersion = &corev1.SchemeGroupVersion
	base.APIPath = "/api"
	base.ContentType = "application/vnd.kubernetes.protobuf"
	base.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	base.Dial = c.dial // also keeps client-go's process-wide transport cache from sharing the connection

	shared, err := c.httpClient(base)
	if err != nil {
		return err
	}
	base.QPS, base.Burst = 10, 20
	if c.reads, err = rest.RESTClientForConfigAndClient(base, shared); err != nil {
		return err
	}
	base.QPS, base.Burst = 5, 25
	if c.posts, err = rest.RESTClientForConfigAndClient(base, shared); err != nil {
		return err
	}

	ev := rest.CopyConfig(c.evictCfg)
	ev.NegotiatedSerializer = c.wire.codecs
	ev.WarningHandler = rest.NoWarnings{}
	ev.GroupVersion = &corev1.SchemeGroupVersion // pods/eviction is a subresource of core/v1; its body is policy/v1
	ev.APIPath = "/api"
	ev.ContentType, ev.AcceptContentTypes = "application/json", "application/json"
	ev.QPS = -1 // no client-side limiter
	ev.Dial = c.dial
	ev.Wrap(func(rt http.RoundTripper) http.RoundTripper { return &answerTap{rt: rt} })
	own, err := c.httpClient(ev)
	if err != nil {
		return err
	}
	c.evicts, err = rest.RESTClientForConfigAndClient(ev, own)
	return err
}

// httpClient makes a client that refuses redirects: client-go's wrapper would send our token to wherever they point.
func (c *Client) httpClient(cfg *rest.Config) (*http.Client, error) {
	made, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	h := *made
	h.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http = append(c.http, &h)
	return &h, nil
}

// Run watches this node's pods and sends queued Events until ctx ends, then returns nil. While the API server is away
// it tries again for ever. It may run once at a time.
func (c *Client) Run(ctx context.Context) error {
	if !c.running.CompareAndSwap(false, true) {
		return errors.New("kube run: already running")
	}
	defer c.running.Store(false)
	var wg sync.WaitGroup
	wg.Go(func() { c.sendEvents(ctx) })
	wg.Go(func() { c.watchPods(ctx) })
	if c.pause != nil {
		wg.Go(func() { c.watchPause(ctx) })
	}
	wg.Wait()
	return nil
}

// Close drops idle connections. It may be called more than once, and the client can still be used afterwards.
func (c *Client) Close() error {
	for _, h := range c.http {
		utilnet.CloseIdleConnectionsFor(h.Transport)
	}
	return nil
}

// quiet keeps client-go from writing to stderr by itself: every error comes back to us and is logged by us.
func quiet(ctx context.Context) context.Context {
	return klog.NewContext(ctx, klog.Logger{})
}
