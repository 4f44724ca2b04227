package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is the largest answer accepted, in bytes: what the kubelet allows (kubernetes cri-client, 16 MiB).
const maxMessage = 16 << 20

// session is one connection to one socket inode. It is never reconnected: when it is lost, or the path leads to
// another inode, the client makes a new session, so that every reading is known to come from the present runtime.
type session struct {
	conn *grpc.ClientConn
	rt   runtimeapi.RuntimeServiceClient
	path string
	id   socketID
	dial *onceDialer
}

// onceDialer connects once and keeps the reason of a failure, which gRPC would turn into text.
type onceDialer struct {
	path string

	cut atomic.Bool // the connection was closed by either side

	mu   sync.Mutex // guards the fields below
	used bool
	err  error
}

// watchedConn notes its end. The state that gRPC reports may lag behind an answer that has been received already.
type watchedConn struct {
	net.Conn
	cut *atomic.Bool
}

func (c watchedConn) Close() error {
	c.cut.Store(true)
	return c.Conn.Close()
}

func (d *onceDialer) dial(ctx context.Context, _ string) (net.Conn, error) {
	d.mu.Lock()
	used := d.used
	d.used = true
	d.mu.Unlock()
	if used {
		return nil, errLost
	}
	var nd net.Dialer
	conn, err := nd.DialContext(ctx, "unix", d.path)
	if err != nil {
		d.mu.Lock()
		d.err = err
		d.mu.Unlock()
		return nil, err
	}
	return watchedConn{conn, &d.cut}, nil
}

// failure returns why the socket could not be connected to, nil when it could.
func (d *onceDialer) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// openSession prepares a connection to the socket; the first call makes it.
func openSession(path string) (*session, error) {
	id, err := statSocket(path)
	if err != nil {
		return nil, err
	}
	d := &onceDialer{path: path}
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithContextDialer(d.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"), // some servers refuse a path in the :authority header
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare connection: %w", err)
	}
	return &session{conn: conn, rt: runtimeapi.NewRuntimeServiceClient(conn), path: path, id: id, dial: d}, nil
}

// current says whether s is still the way to the runtime: connected, and its path still leads to the same inode. A path
// that leads nowhere keeps the session: the runtime behind it may still answer.
func (s *session) current() bool {
	if s.dial.cut.Load() {
		return false
	}
	id, err := statSocket(s.path)
	return err != nil || id == s.id
}

// connect returns the current session or makes one, trying the endpoints in order; the first that answers Version as
// CRI v1 is taken. fresh is true for a new one. The caller's context limits the whole of it.
func (c *Client) connect(parent, ctx context.Context) (s *session, fresh bool, err error) {
	select {
	case c.connecting <- struct{}{}:
	case <-ctx.Done():
		return nil, false, explain(parent, ctx, c.timeout, nil, ctx.Err())
	}
	defer func() { <-c.connecting }()

	c.mu.Lock()
	old, closed := c.session, c.closed
	c.mu.Unlock()
	if closed {
		return nil, false, ErrClosed
	}
	if old != nil {
		if old.current() {
			return old, false, nil
		}
		c.drop(old)
	}
	var faults endpointErrors
	for _, path := range c.paths {
		s, err := c.open(parent, ctx, path)
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.closed {
				_ = s.conn.Close() // nothing depends on it
				return nil, false, ErrClosed
			}
			c.session = s
			return s, true, nil
		}
		faults = append(faults, fmt.Errorf("connect unix://%s: %w", path, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, false, faults.summary(c.paths)
}

// open makes a session and checks that CRI v1 answers on it.
func (c *Client) open(parent, ctx context.Context, path string) (*session, error) {
	s, err := openSession(path)
	if err != nil {
		return nil, explainDial(err)
	}
	v, err := s.rt.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		err = explain(parent, ctx, c.timeout, s.dial.failure(), err)
		if errors.Is(err, errLost) {
			// It was connected to and cut before the first answer: another protocol, or a runtime that stops.
			err = fmt.Errorf("%w, or it is going down: %w", ErrNotCRI, err)
		}
		_ = s.conn.Close() // the first error says it
		return nil, err
	}
	c.log.Info("connected to the container runtime", "endpoint", "unix://"+path,
		"runtime", v.GetRuntimeName(), "version", v.GetRuntimeVersion())
	return s, nil
}

// drop forgets a session and closes its connection, which ends its event stream.
func (c *Client) drop(s *session) {
	c.mu.Lock()
	if c.session == s {
		c.session = nil
	}
	c.mu.Unlock()
	_ = s.conn.Close() // a second Close only says that it is closed
}

// do runs one operation with the client's timeout over a session that is known to be current. A session that turns out
// to be lost is replaced and the operation tried once more, within the same timeout.
func (c *Client) do(parent context.Context, op string, call func(context.Context, *session) error) error {
	return c.within(parent, c.timeout, op, call)
}

// within is do for a call that takes its time.
func (c *Client) within(parent context.Context, limit time.Duration, op string, call func(context.Context, *session) error) error {
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	for {
		s, fresh, err := c.connect(parent, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		if err = call(ctx, s); err == nil {
			return nil
		}
		if c.isClosed() {
			return fmt.Errorf("%s: %w", op, ErrClosed)
		}
		err = explain(parent, ctx, limit, s.dial.failure(), err)
		if errors.Is(err, errLost) {
			c.drop(s)
			if !fresh {
				continue
			}
		}
		return fmt.Errorf("%s unix://%s: %w", op, s.path, err)
	}
}

// current returns the session in use, nil while there is none.
func (c *Client) current() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }
