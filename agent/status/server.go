package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

// DefaultSocket is where the agent listens and the client asks.
const DefaultSocket = "/run/spillway/spillway.sock"

// ErrInUse says that another agent answers on the socket.
var ErrInUse = errors.New("another agent answers there")

// Views are what the server asks the agent for.
type Views struct {
	Status  func() *Status // nil before the first pass
	Samples func(SampleQuery) (Samples, error)
	// Explain says what would happen to a pod of this node, by namespace/name; nil: this agent evicts nobody.
	Explain func(ctx context.Context, pod string) (Explanation, error)
	// Preflight checks all that the agent needs.
	Preflight func(ctx context.Context) []Check
	// Recording copies what was recorded; nil: this agent records nothing.
	Recording func(io.Writer) error
	// Once begins a maintenance run, which ends with ctx; the channel is closed after the event with the summary. While another
	// one goes on it answers ErrOnceBusy. nil: this agent evicts nobody.
	Once func(ctx context.Context, r OnceRequest) (<-chan OnceEvent, error)
	// Events hand out what happened; nil: this agent keeps nothing.
	Events *EventViews
}

// Server answers on a unix socket: GET /v1/status hands out the newest Status, GET /v1/samples the newest Samples, with
// the parameters resolution and pod of SampleQuery, GET /v1/explain?pod=NAMESPACE/NAME an Explanation, GET /v1/preflight
// checks what the agent needs and hands out its Checks, GET /v1/recording the
// recording (see agent/recording). POST /v1/once with a OnceRequest begins a maintenance run and hands out OnceEvents, one on a
// line, until it ends or the connection does. GET /v1/events hands out an EventList, with the parameters since, limit and wait
// (seconds) of EventQuery: who follows events asks again with since set to Next of the answer before, and wait. GET /v1/events/ID
// hands out an EventDetail; 404 says which IDs there are.
type Server struct {
	path     string
	file     os.FileInfo // of the socket: another agent's is not removed
	removed  sync.Once
	listener net.Listener
	http     *http.Server
}

// Listen takes the socket. It refuses when someone answers on it (ErrInUse), and replaces a file that a dead agent
// left behind. The socket is made under another name with mode 0600 and renamed, so that it is never open to others.
func Listen(path string, views Views) (*Server, error) { return ListenFor(path, 0, views) }

// ListenFor is Listen with a group (GID) whose members may ask as well, but not begin a maintenance run; 0: nobody else.
func ListenFor(path string, group int, views Views) (*Server, error) {
	if path == "" {
		path = DefaultSocket
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("listen on %s: it exists and is no socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		conn.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, ErrInUse)
	case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED):
		// such as a full backlog: nobody is known to be dead
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".listen-") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	l, err := net.Listen("unix", made)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	var file os.FileInfo
	mode := os.FileMode(0o600)
	if group > 0 {
		mode, err = 0o660, os.Chown(made, -1, group)
	}
	if err == nil {
		err = os.Chmod(made, mode)
	}
	if err == nil {
		file, err = os.Lstat(made)
	}
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &Server{path: path, file: file, listener: peers{l}, http: serverOf(views)}, nil
}

// serverOf answers by the views.
func serverOf(views Views) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		s := views.Status()
		if s == nil {
			http.Error(w, "the agent has not finished its first pass", http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, s)
	})
	mux.HandleFunc("GET /v1/samples", func(w http.ResponseWriter, r *http.Request) {
		s, err := views.Samples(SampleQuery{Resolution: r.URL.Query().Get("resolution"), Pod: r.URL.Query().Get("pod")})
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, s)
	})
	mux.HandleFunc("GET /v1/explain", func(w http.ResponseWriter, r *http.Request) {
		if views.Explain == nil {
			http.Error(w, "a standalone agent evicts no pods", http.StatusNotImplemented)
			return
		}
		e, err := views.Explain(r.Context(), r.URL.Query().Get("pod"))
		switch {
		case errors.Is(err, ErrNoPod):
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, e)
	})
	mux.HandleFunc("GET /v1/recording", func(w http.ResponseWriter, _ *http.Request) {
		if views.Recording == nil {
			http.Error(w, "a standalone agent records nothing", http.StatusNotFound)
			return
		}
		// It may be large, and who reads it slow.
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(10 * time.Minute))
		w.Header().Set("Content-Type", "application/gzip")
		sent := &counted{w: w}
		if err := views.Recording(sent); err != nil {
			if sent.n == 0 {
				http.Error(w, err.Error(), http.StatusNotFound)
				return
			}
			panic(http.ErrAbortHandler) // the client must not take a part for the whole
		}
	})
	mux.HandleFunc("GET /v1/preflight", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(preflightTimeout))
		writeJSON(w, views.Preflight(r.Context()))
	})
	serveEvents(mux, views.Events)
	mux.HandleFunc("POST /v1/once", func(w http.ResponseWriter, r *http.Request) {
		if !mayAct(r) {
			http.Error(w, "only root may begin a maintenance run", http.StatusForbidden)
			return
		}
		serveOnce(w, r, views.Once)
	})
	return &http.Server{
		Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10,
	}
}

// peers is a listener whose connections say who made them: the RemoteAddr of their requests is "uid N".
type peers struct{ net.Listener }

type peer struct {
	net.Conn
	uid uint32
}

// Accept takes a connection with the user that the kernel knows it to be of (SO_PEERCRED, unix(7)).
func (l peers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	const nobody = 1<<32 - 1
	p := &peer{c, nobody}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { // without an answer it is nobody
				if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
					p.uid = cred.Uid
				}
			})
		}
	}
	return p, nil
}

func (p *peer) RemoteAddr() net.Addr { return user(p.uid) }

type user uint32

func (user) Network() string  { return "unix" }
func (u user) String() string { return fmt.Sprintf("uid %d", uint32(u)) }

// mayAct says whether a request may make the agent evict: the socket's group may read.
func mayAct(r *http.Request) bool {
	return r.RemoteAddr == user(0).String() || r.RemoteAddr == user(os.Geteuid()).String()
}

// preflightTimeout bounds a look at all that an agent needs: most of it asks others.
const preflightTimeout = 45 * time.Second

// maxClients bounds the connections at a time, and with them the memory of answers; further ones wait. One whose other side
// does not read ends with its answer's time.
const maxClients = 16

// lastWords is how long answers under way may go on when the server ends: a maintenance run still says why it ends.
const lastWords = 2 * time.Second

// Run serves until ctx ends and then removes the socket. It returns an error only when serving ends for another
// reason.
func (s *Server) Run(ctx context.Context) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		s.http.Shutdown(last) // its error is that of last: what is left is closed
		s.http.Close()
	})
	err := s.http.Serve(netutil.LimitListener(s.listener, maxClients))
	s.remove()
	if !stop() {
		<-closed
	}
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve on %s: %w", s.path, err)
}

// Close gives the socket up, also when Run was never called. It may be called more than once.
func (s *Server) Close() error {
	s.remove()
	s.listener.Close() // http.Close closes it only after Serve has seen it
	return s.http.Close()
}

// remove removes the socket once, unless it is that of an agent that came after this one.
func (s *Server) remove() {
	s.removed.Do(func() {
		if fi, err := os.Lstat(s.path); err == nil && os.SameFile(fi, s.file) {
			os.Remove(s.path)
		}
	})
}

// counted tells whether anything was sent yet.
type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v) // an error means that the client went away
}

// Get asks the agent that listens on the socket for its Status.
func Get(ctx context.Context, path string) (*Status, error) {
	s := new(Status)
	if err := get(ctx, path, "/v1/status", s); err != nil {
		return nil, err
	}
	return s, nil
}

// GetSamples asks the agent that listens on the socket for samples.
func GetSamples(ctx context.Context, path string, q SampleQuery) (Samples, error) {
	var s Samples
	err := get(ctx, path, "/v1/samples?"+url.Values{"resolution": {q.Resolution}, "pod": {q.Pod}}.Encode(), &s)
	return s, err
}

// GetPreflight has the agent check what it needs.
func GetPreflight(ctx context.Context, path string) (out []Check, err error) {
	ctx, cancel := context.WithTimeout(ctx, preflightTimeout)
	defer cancel()
	err = get(ctx, path, "/v1/preflight", &out)
	return out, err
}

// GetExplanation asks the agent that listens on the socket about a pod, by namespace/name.
func GetExplanation(ctx context.Context, path, pod string) (Explanation, error) {
	var e Explanation
	err := get(ctx, path, "/v1/explain?"+url.Values{"pod": {pod}}.Encode(), &e)
	return e, err
}

// GetRecording copies what the agent that listens on the socket has recorded.
func GetRecording(ctx context.Context, path string, out io.Writer) error {
	return request(ctx, path, http.MethodGet, "/v1/recording", nil, func(body io.Reader) error {
		if _, err := io.Copy(out, body); err != nil {
			return fmt.Errorf("copy recording: %w", err)
		}
		return nil
	})
}

// refusal is an answer that is none.
type refusal struct {
	code int
	text string
}

func (r *refusal) Error() string { return r.text }

// ErrNoPod says that a pod is not one of this node.
var ErrNoPod = errors.New("not a pod of this node")

// ErrBusy says that too many ask at once.
var ErrBusy = errors.New("the agent is busy: ask again")

// NoPod reports whether an agent answered that the pod in question is not on its node.
func NoPod(err error) bool {
	r := new(refusal)
	return errors.As(err, &r) && r.code == http.StatusNotFound
}

// Refused reports whether an agent answered that the question is wrong, so that to ask again is of no use. False: there was no
// agent, it ended while it answered, or it could not answer just then.
func Refused(err error) bool {
	r := new(refusal)
	return errors.As(err, &r) && r.code >= 400 && r.code < 500
}

func get(ctx context.Context, path, what string, into any) error {
	return request(ctx, path, http.MethodGet, what, nil, func(body io.Reader) error {
		if err := json.NewDecoder(body).Decode(into); err != nil {
			return fmt.Errorf("decode answer: %w", err)
		}
		return nil
	})
}

func request(ctx context.Context, path, method, what string, body io.Reader, take func(io.Reader) error) error {
	if path == "" {
		path = DefaultSocket
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://spillway"+what, body)
	if err != nil {
		return fmt.Errorf("ask %s: %w", path, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return fmt.Errorf("ask %s: %w (is the agent running on this node?)", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		text := strings.TrimSpace(string(why))
		if text == "" {
			text = fmt.Sprintf("the agent gave no reason (code %d)", resp.StatusCode)
		}
		return fmt.Errorf("ask %s: %w", path, &refusal{resp.StatusCode, text})
	}
	if err := take(resp.Body); err != nil {
		return fmt.Errorf("ask %s: %w", path, err)
	}
	return nil
}
