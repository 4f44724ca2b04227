package cri_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spillway/cri"
	"spillway/cri/critest"
)

func TestMain(m *testing.M) {
	if endpoint := os.Getenv("CRI_TEST_LIST"); endpoint != "" {
		listAndPrint(endpoint)
		return
	}
	goleak.VerifyTestMain(m)
}

// listAndPrint is the process that TestPermissionDenied runs as another user.
func listAndPrint(endpoint string) {
	c, err := cri.Dial(cri.Options{Endpoint: endpoint})
	if err == nil {
		_, err = c.List(context.Background())
	}
	fmt.Println(errors.Is(err, fs.ErrPermission), err)
}

func dial(t testing.TB, o cri.Options) *cri.Client {
	t.Helper()
	c, err := cri.Dial(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func container(n int, state cri.State) cri.Container {
	return cri.Container{
		ID: fmt.Sprintf("c%04d", n), Name: "app", Image: "localhost/app:1", Attempt: uint32(n % 3), SandboxID: fmt.Sprintf("s%04d", n/2),
		PodUID: fmt.Sprintf("uid-%d", n/2), PodNamespace: "shop", PodName: fmt.Sprintf("cart-%d", n/2),
		State: state, CreatedAt: time.Unix(1700000000, int64(n)),
	}
}

func containers(n int) []cri.Container {
	var out []cri.Container
	for i := range n {
		out = append(out, container(i, cri.StateRunning))
	}
	return out
}

func TestVersion(t *testing.T) {
	r := critest.Start(t)
	got, err := dial(t, cri.Options{Endpoint: r.Endpoint()}).Version(t.Context())
	want := cri.Version{Endpoint: r.Endpoint(), Runtime: "critest", Version: "v1.2.3", APIVersion: "v1"}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestList(t *testing.T) {
	r := critest.Start(t)
	c := dial(t, cri.Options{Endpoint: r.Endpoint()})
	all := []cri.Container{container(0, cri.StateUnknown), container(1, cri.StateCreated), container(2, cri.StateRunning), container(3, cri.StateExited)}
	orphan := cri.Container{ID: "orphan", Name: "x", State: cri.StateRunning}
	for name, tc := range map[string]struct {
		unlabelled bool
		set, want  []cri.Container
		sandboxes  int // ListPodSandbox calls
	}{
		"no containers":                {want: []cri.Container{}},
		"all states, by labels":        {set: all, want: all},
		"identity from the sandbox":    {set: all, want: all, unlabelled: true, sandboxes: 1},
		"a container that no pod owns": {set: []cri.Container{orphan, all[2]}, want: []cri.Container{all[2], orphan}, sandboxes: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r.Set(tc.set...)
			r.Unlabelled(tc.unlabelled)
			before := r.Calls("ListPodSandbox")
			got, err := c.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
			if n := r.Calls("ListPodSandbox") - before; n != tc.sandboxes {
				t.Errorf("%d sandbox lists, want %d", n, tc.sandboxes)
			}
		})
	}
}

func TestStateString(t *testing.T) {
	var got []string
	for s := cri.StateUnknown; s <= cri.StateExited+1; s++ {
		got = append(got, s.String())
	}
	if d := cmp.Diff([]string{"unknown", "created", "running", "exited", "state(4)"}, got); d != "" {
		t.Error(d)
	}
}

// shortDir is a directory whose sockets fit a socket address.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// serve listens at a new path and hands the listener to run.
func serve(t *testing.T, run func(net.Listener)) (path string) {
	t.Helper()
	path = filepath.Join(shortDir(t), "x.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); run(l) }()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return path
}

func TestBadSocketsAreNamed(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	datagram := filepath.Join(dir, "datagram")
	dg, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: datagram, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer dg.Close()
	web := serve(t, func(l net.Listener) { _ = http.Serve(l, http.NotFoundHandler()) })
	grpcOnly := serve(t, func(l net.Listener) {
		s := grpc.NewServer()
		defer s.Stop()
		_ = s.Serve(l)
	})
	hangUp := serve(t, func(l net.Listener) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	})
	silent := serve(t, func(l net.Listener) {
		var conns []net.Conn
		for {
			conn, err := l.Accept()
			if err != nil {
				break
			}
			conns = append(conns, conn)
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
	})
	for name, tc := range map[string]struct {
		path string
		is   error
		text string
	}{
		"missing":          {filepath.Join(dir, "none"), fs.ErrNotExist, "is the runtime running"},
		"a file":           {file, nil, "not a socket"},
		"nobody listens":   {stale, syscall.ECONNREFUSED, "the runtime is down"},
		"datagram socket":  {datagram, cri.ErrNotCRI, "not a stream socket"},
		"web server":       {web, cri.ErrNotCRI, "no CRI v1 service"},
		"gRPC without CRI": {grpcOnly, cri.ErrNotCRI, "runtime.v1.RuntimeService"},
		"hangs up":         {hangUp, cri.ErrNotCRI, "no CRI v1 service"},
		"never answers":    {silent, cri.ErrHung, "no answer within 300ms"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, cri.Options{Endpoint: tc.path, Timeout: 300 * time.Millisecond})
			for range 2 { // the second time the client has the failure behind it
				start := time.Now()
				_, err := c.List(t.Context())
				if err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), tc.path) {
					t.Errorf("error %q, want %v with %q and the path", err, tc.is, tc.text)
				}
				if strings.Contains(fmt.Sprint(err), "\n") {
					t.Errorf("error of several lines: %q", err)
				}
				if d := time.Since(start); d > 2*time.Second {
					t.Errorf("took %v", d)
				}
				t.Log(err)
			}
		})
	}
}

func TestPermissionDenied(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("starting a process of another user needs root")
	}
	r := critest.Start(t)
	path := strings.TrimPrefix(r.Endpoint(), "unix://")
	if err := errors.Join(os.Chmod(filepath.Dir(path), 0o755), os.Chmod(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	// The test binary lies in a directory that the other user cannot enter.
	exe := filepath.Join(filepath.Dir(path), "test")
	src, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, src, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir = "/"
	cmd.Env = []string{"CRI_TEST_LIST=" + r.Endpoint()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "true ") || !strings.Contains(string(out), "run as root") || !strings.Contains(string(out), path) {
		t.Errorf("%v: %q", err, out)
	}
	t.Logf("%s", out)
}

func TestAnswersOfTheRuntime(t *testing.T) {
	r := critest.Start(t)
	c := dial(t, cri.Options{Endpoint: r.Endpoint(), Timeout: 200 * time.Millisecond})
	for name, tc := range map[string]struct {
		fault error
		is    error
		text  string
	}{
		"internal error":               {status.Error(codes.Internal, "store is broken"), nil, "runtime answers Internal: store is broken"},
		"deadline inside the runtime":  {status.Error(codes.DeadlineExceeded, "shim"), nil, "runtime answers DeadlineExceeded: shim"},
		"unavailable inside":           {status.Error(codes.Unavailable, "starting"), nil, "starting"},
		"method missing":               {status.Error(codes.Unimplemented, "unknown method"), cri.ErrNotCRI, "unknown method"},
		"too old or not fully started": {status.Error(codes.Unknown, "server is not initialized yet"), nil, "server is not initialized yet"},
	} {
		t.Run(name, func(t *testing.T) {
			r.Fail(tc.fault)
			defer r.Fail(nil)
			_, err := c.List(t.Context())
			if err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.text) || errors.Is(err, cri.ErrHung) {
				t.Errorf("error %v, want %v with %q", err, tc.is, tc.text)
			}
			t.Log(err)
		})
	}
	if _, err := c.List(t.Context()); err != nil {
		t.Errorf("after the faults: %v", err)
	}
}

func TestHungRuntimeCostsTheTimeout(t *testing.T) {
	r := critest.Start(t)
	c := dial(t, cri.Options{Endpoint: r.Endpoint(), Timeout: 200 * time.Millisecond})
	for _, connected := range []bool{false, true} {
		r.Hang()
		start := time.Now()
		_, err := c.List(t.Context())
		if d := time.Since(start); !errors.Is(err, cri.ErrHung) || d < 200*time.Millisecond || d > 2*time.Second {
			t.Errorf("connected %v: error %v after %v", connected, err, d)
		}
		r.Resume()
		if _, err := c.List(t.Context()); err != nil {
			t.Errorf("after the hang: %v", err)
		}
	}
}

func TestCallerGivesUp(t *testing.T) {
	r := critest.Start(t)
	c := dial(t, cri.Options{Endpoint: r.Endpoint(), Timeout: time.Minute})
	r.Hang()
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("shutting down")
	errs := make(chan error)
	go func() { _, err := c.List(ctx); errs <- err }()
	go func() { _, err := c.List(ctx); errs <- err }() // waits for the first one's connection
	cancel(reason)
	for range 2 {
		if err := <-errs; !errors.Is(err, reason) || errors.Is(err, cri.ErrHung) {
			t.Errorf("error %v", err)
		}
	}
}

func TestCallAfterRestart(t *testing.T) {
	r := critest.Start(t)
	c := dial(t, cri.Options{Endpoint: r.Endpoint()})
	for range 5 {
		if _, err := c.List(t.Context()); err != nil {
			t.Error(err)
		}
		r.Stop()
		if _, err := c.List(t.Context()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stopped: %v", err)
		}
		r.Restart()
	}
	if _, err := c.List(t.Context()); err != nil {
		t.Error(err)
	}
	r.Stop()
	r.Restart() // between two calls, unnoticed
	if _, err := c.List(t.Context()); err != nil {
		t.Errorf("first call after a restart: %v", err)
	}
}

func TestNewSocketAtTheOldPath(t *testing.T) {
	a, b := critest.Start(t), critest.Start(t)
	a.Set(container(1, cri.StateRunning))
	b.Set(container(2, cri.StateRunning))
	c := dial(t, cri.Options{Endpoint: a.Endpoint()})
	if got, err := c.List(t.Context()); err != nil || got[0].ID != "c0001" {
		t.Fatal(got, err)
	}
	// The old runtime still answers on the connection that is open.
	if err := os.Rename(strings.TrimPrefix(b.Endpoint(), "unix://"), strings.TrimPrefix(a.Endpoint(), "unix://")); err != nil {
		t.Fatal(err)
	}
	if got, err := c.List(t.Context()); err != nil || got[0].ID != "c0002" {
		t.Errorf("%v, %v: not from the runtime that has the socket now", got, err)
	}
}

func TestWellKnownSockets(t *testing.T) {
	noCRI := serve(t, func(l net.Listener) { // a containerd whose CRI plugin is disabled
		s := grpc.NewServer()
		defer s.Stop()
		_ = s.Serve(l)
	})
	r := critest.Start(t)
	path := strings.TrimPrefix(r.Endpoint(), "unix://")
	none := filepath.Join(shortDir(t), "none")
	c, err := cri.DialPaths(cri.Options{}, none, noCRI, path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v, err := c.Version(t.Context()); err != nil || v.Endpoint != r.Endpoint() {
		t.Errorf("%+v, %v", v, err)
	}
	r.Stop()
	if _, err := c.Version(t.Context()); !errors.Is(err, cri.ErrNotCRI) || strings.Contains(err.Error(), none) {
		t.Errorf("error %v: want the one socket that exists", err)
	}
	r.Restart()
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
	lost, err := cri.DialPaths(cri.Options{}, none, none+"2")
	if err != nil {
		t.Fatal(err)
	}
	defer lost.Close()
	if _, err := lost.Version(t.Context()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), none+", "+none+"2") {
		t.Errorf("error %v: want all sockets that were tried", err)
	}
}

func TestClose(t *testing.T) {
	r := critest.Start(t)
	c := dial(t, cri.Options{Endpoint: r.Endpoint(), Timeout: time.Minute})
	if _, err := c.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Hang()
	before := r.Calls("ListContainers")
	errs := make(chan error)
	go func() { _, err := c.List(t.Context()); errs <- err }()
	eventually(t, "the call is at the runtime", func() bool { return r.Calls("ListContainers") > before })
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if err := <-errs; !errors.Is(err, cri.ErrClosed) {
		t.Errorf("call during Close: %v", err)
	}
	if _, err := c.List(t.Context()); !errors.Is(err, cri.ErrClosed) {
		t.Errorf("call after Close: %v", err)
	}
}

func TestConcurrentCallsDuringRestarts(t *testing.T) {
	r := critest.Start(t)
	r.Set(containers(10)...)
	c := dial(t, cri.Options{Endpoint: r.Endpoint()})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				got, err := c.List(t.Context())
				if err == nil && len(got) != 10 {
					t.Errorf("%d containers", len(got))
				}
				if errors.Is(err, cri.ErrHung) || errors.Is(err, cri.ErrClosed) {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		r.Stop()
		r.Restart()
	}
	wg.Wait()
	if _, err := c.List(t.Context()); err != nil {
		t.Error(err)
	}
}

// BenchmarkList is one complete list of a full node: 110 pods of three containers. It includes the fake's side.
func BenchmarkList(b *testing.B) {
	r := critest.Start(b)
	r.Set(containers(330)...)
	c := dial(b, cri.Options{Endpoint: r.Endpoint()})
	b.ReportAllocs()
	for b.Loop() {
		if cs, err := c.List(b.Context()); err != nil || len(cs) != 330 {
			b.Fatal(len(cs), err)
		}
	}
}

// eventually polls; it is for what no channel tells.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func TestStop(t *testing.T) {
	r := critest.Start(t)
	r.Set(containers(2)...)
	c := dial(t, cri.Options{Endpoint: r.Endpoint(), Timeout: 500 * time.Millisecond})
	began := time.Now()
	if err := c.Stop(t.Context(), "c0000", time.Second); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("back after %s, before the grace had run", took)
	}
	left, err := c.List(t.Context())
	if err != nil || len(left) != 1 || left[0].ID != "c0001" {
		t.Errorf("left: %+v, %v", left, err)
	}
	if err := c.Stop(t.Context(), "c0000", time.Second); err != nil {
		t.Errorf("one that is gone: %v", err)
	}
	for _, grace := range []time.Duration{0, 999 * time.Millisecond, -time.Second} {
		if err := c.Stop(t.Context(), "c0001", grace); err == nil {
			t.Errorf("grace %s is accepted", grace)
		}
	}
	if err := c.Stop(t.Context(), "", time.Second); err == nil {
		t.Error("no id is accepted")
	}
	r.Hang()
	if err := c.Stop(t.Context(), "c0001", time.Second); !errors.Is(err, cri.ErrHung) {
		t.Errorf("of a runtime that hangs: %v", err)
	}
	r.Resume()
}
