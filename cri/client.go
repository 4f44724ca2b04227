package cri

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Defaults of Options, and the shortest poll interval accepted.
const (
	DefaultTimeout      = 2 * time.Second
	DefaultPollInterval = 10 * time.Second
	minPollInterval     = 10 * time.Millisecond
)

// Options are the settings of a client. The zero value tries the well-known sockets with the default times.
type Options struct {
	// Endpoint is "unix:///path/of.sock". Empty: /run/containerd/containerd.sock, /run/k3s/containerd/containerd.sock,
	// /run/crio/crio.sock and /run/cri-dockerd.sock are tried in this order on every connect, and the first that
	// answers as CRI v1 is taken. Inside a container mount the directory of the socket, not the socket: a mounted socket
	// stays the old one when the runtime makes a new one.
	Endpoint string
	// Timeout is the longest a call may take, connecting included; 0 means DefaultTimeout.
	Timeout time.Duration
	// PollInterval is the time between the complete lists of Watch while events flow; 0 means DefaultPollInterval.
	// It bounds how long a lost event or a hang can stay unnoticed (a hang: PollInterval + Timeout; see Refresh).
	// A list costs the runtime about as much as one relist of the kubelet, which does it every second. Without an event
	// stream the list is the only source, and a quarter of PollInterval is used.
	PollInterval time.Duration
	// PollOnly keeps Watch from subscribing to container events: nothing that this process does, or stops doing, can
	// then hold up the runtime (see the package comment). Changes are seen a quarter of PollInterval late.
	PollOnly bool
	// Logger gets connects, faults on change and once a minute, and recoveries; nil discards them.
	Logger *slog.Logger
}

// Client talks to one runtime. Its methods may be used by several goroutines.
type Client struct {
	paths    []string // sockets to try, in order
	timeout  time.Duration
	poll     time.Duration
	pollOnly bool
	log      *slog.Logger

	connecting chan struct{} // one token: only one goroutine makes a session
	refresh    chan struct{} // one token: see Refresh
	done       chan struct{} // closed by Close

	mu      sync.Mutex // guards the fields below; never held during a call
	session *session   // nil while not connected
	closed  bool
}

// Dial checks the options and returns a client. It does not touch the socket: the runtime may start later.
func Dial(o Options) (*Client, error) {
	if o.Timeout < 0 {
		return nil, fmt.Errorf("check timeout %v: negative", o.Timeout)
	}
	if o.PollInterval != 0 && o.PollInterval < minPollInterval {
		return nil, fmt.Errorf("check poll interval %v: less than %v", o.PollInterval, minPollInterval)
	}
	paths := wellKnown()
	if o.Endpoint != "" {
		path, err := parseEndpoint(o.Endpoint)
		if err != nil {
			return nil, err
		}
		paths = []string{path}
	}
	c := &Client{
		paths:      paths,
		timeout:    o.Timeout,
		poll:       o.PollInterval,
		pollOnly:   o.PollOnly,
		log:        o.Logger,
		connecting: make(chan struct{}, 1),
		refresh:    make(chan struct{}, 1),
		done:       make(chan struct{}),
	}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if c.poll == 0 {
		c.poll = DefaultPollInterval
	}
	if c.log == nil {
		c.log = discardLogger()
	}
	return c, nil
}

// Version is what a runtime says of itself.
type Version struct {
	Endpoint   string // the socket that answered, "unix:///path"
	Runtime    string // "containerd", "cri-o", "docker"
	Version    string // of the runtime, "v2.2.1"
	APIVersion string // of the CRI, "v1"
}

// Version asks the runtime for its name and version. It is the cheapest proof that the runtime answers.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	err := c.do(ctx, "get version", func(ctx context.Context, s *session) error {
		r, err := s.rt.Version(ctx, &runtimeapi.VersionRequest{})
		if err != nil {
			return err
		}
		v = Version{Endpoint: "unix://" + s.path, Runtime: r.GetRuntimeName(), Version: r.GetRuntimeVersion(), APIVersion: r.GetRuntimeApiVersion()}
		return nil
	})
	return v, err
}

// List returns all containers in all states, sorted by id. Errors wrap ErrHung, ErrNotCRI, ErrClosed or the system
// call's error (fs.ErrNotExist, fs.ErrPermission, ECONNREFUSED) and name the socket.
func (c *Client) List(ctx context.Context) ([]Container, error) {
	var out []Container
	err := c.do(ctx, "list containers", func(ctx context.Context, s *session) (err error) {
		out, err = s.list(ctx, "")
		return err
	})
	return out, err
}

// Stop stops a container: the runtime sends its stop signal, unless it has before, and kills it when it still runs after
// grace. Stop returns when the container has ended. A stop that another caller has begun with a longer grace is overtaken.
// One that is not running, or not there, is no error.
func (c *Client) Stop(ctx context.Context, id string, grace time.Duration) error {
	if id == "" || grace < time.Second {
		return fmt.Errorf("stop container %q: want an id and a grace of at least 1 s, not %s", id, grace)
	}
	return c.within(ctx, c.timeout+grace, "stop container "+id, func(ctx context.Context, s *session) error {
		_, err := s.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(grace / time.Second)})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return err
	})
}

// Close ends all calls, and Watch with ErrClosed. It may be called more than once.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	close(c.done)
	if c.session == nil {
		return nil
	}
	err := c.session.conn.Close()
	c.session = nil
	if err != nil {
		return fmt.Errorf("close connection: %w", err)
	}
	return nil
}
