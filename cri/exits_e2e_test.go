//go:build e2e

package cri_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"spillway/cri"
)

// startSkew is by how much containerd (2.2.1) may state that a container began after it ended, when that took no time: it takes
// the one from its own clock after the start, the other from the exit. Less than a millisecond was seen.
const startSkew = 100 * time.Millisecond

// eaterLimit is the memory of the container that eats it.
const eaterLimit = 32 << 20

// withoutEvents passes calls on to the real runtime, and refuses its event stream as a runtime does that has none.
type withoutEvents struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	rt   runtimeapi.RuntimeServiceClient
	code codes.Code
}

func (w *withoutEvents) Version(ctx context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return w.rt.Version(ctx, r)
}

func (w *withoutEvents) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return w.rt.ListContainers(ctx, r)
}

func (w *withoutEvents) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return w.rt.ListPodSandbox(ctx, r)
}

func (w *withoutEvents) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return w.rt.ContainerStatus(ctx, r)
}

func (w *withoutEvents) GetContainerEvents(*runtimeapi.GetEventsRequest, runtimeapi.RuntimeService_GetContainerEventsServer) error {
	return status.Error(w.code, "no container events here")
}

// refuseEvents listens beside containerd, with its answers but for events.
func (d *daemon) refuseEvents(name string, code codes.Code) (endpoint string) {
	d.t.Helper()
	l, err := net.Listen("unix", d.path(name))
	if err != nil {
		d.t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, &withoutEvents{rt: d.cli(), code: code})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	d.t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			d.t.Error(err)
		}
	})
	return "unix://" + d.path(name)
}

// mourner follows a runtime and keeps what ended.
type mourner struct {
	name string
	c    *cri.Client

	mu    sync.Mutex // guards what follows
	last  cri.View
	ended []cri.Container
	seen  []time.Time
}

func mourn(t *testing.T, name string, o cri.Options) *mourner {
	t.Helper()
	m := &mourner{name: name, c: dial(t, o)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.c.Watch(ctx, m.view) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: watch: %v", name, err)
		}
	})
	return m
}

func (m *mourner) view(now cri.View) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range cri.Ended(&m.last, &now) {
		m.ended, m.seen = append(m.ended, c), append(m.seen, time.Now())
	}
	m.last = now
}

// of returns the ends of a container, and when each was seen.
func (m *mourner) of(id string) (out []cri.Container, at []time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, c := range m.ended {
		if c.ID == id {
			out, at = append(out, c), append(at, m.seen[i])
		}
	}
	return out, at
}

func (m *mourner) is(ok func(cri.View) bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return ok(m.last)
}

// kill sends SIGKILL to the processes of a container, as a node's own tools may.
func (p *pod) kill(t *testing.T, d *daemon, name string) {
	t.Helper()
	n := 0
	for _, root := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		procs, err := os.ReadFile(filepath.Join(root, d.cgroup, name, p.container, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(procs)) {
			pid, err := strconv.Atoi(field)
			if err != nil || pid <= 1 {
				t.Fatalf("process %q of container %s", field, name)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatalf("kill process %d of container %s: %v", pid, name, err)
			}
			n++
		}
	}
	if n == 0 {
		t.Fatalf("container %s has no process", name)
	}
}

// The ends of real containers are found with the runtime's events, and without: by one that does not know them, one that does
// not give them, and by a client that does not ask. Each is found once, with code, reason, times, container and pod.
func TestContainerdExits(t *testing.T) {
	d := newDaemon(t)
	d.start()
	mourners := []*mourner{
		mourn(t, "events", cri.Options{Endpoint: d.endpoint(), PollInterval: rare, Timeout: 5 * time.Second}),
		mourn(t, "unimplemented", cri.Options{Endpoint: d.refuseEvents("u.sock", codes.Unimplemented), PollInterval: 4 * e2ePoll, Timeout: 5 * time.Second}),
		mourn(t, "unavailable", cri.Options{Endpoint: d.refuseEvents("a.sock", codes.Unavailable), PollInterval: 4 * e2ePoll, Timeout: 5 * time.Second}),
		mourn(t, "not asked", cri.Options{Endpoint: d.endpoint(), PollOnly: true, PollInterval: 4 * e2ePoll, Timeout: 5 * time.Second}),
	}
	for i, m := range mourners {
		eventually(t, m.name+": first view", func() bool { return m.is(synced) && (i > 0 || m.is(live)) })
	}
	d.importImage()
	rt := d.cli()
	ends := []struct {
		name   string
		limit  int64
		args   []string
		end    func(p *pod) // nil: it ends by itself
		code   int32
		reason string
	}{
		{"killed", 0, nil, func(p *pod) { p.kill(t, d, "killed") }, 137, "Error"},
		{"failed", 0, []string{"end", "1"}, nil, 1, "Error"},
		{"stopped", 0, []string{"term", "143"}, func(p *pod) { p.stop(t) }, 143, "Error"},
		{"eater", eaterLimit, []string{"eat"}, nil, 137, "OOMKilled"},
		{"completed", 0, []string{"end", "0"}, nil, 0, "Completed"},
	}
	stays := runPod(t, d, rt, "stays", true, 0)
	stays.start(t)
	for _, tc := range ends {
		p := runPod(t, d, rt, tc.name, tc.name != "stopped", tc.limit, tc.args...) // one without the kubelet's labels
		begin := time.Now()
		p.start(t)
		if tc.end != nil {
			tc.end(p)
		}
		for _, m := range mourners {
			m.check(t, p, tc.name, begin, tc.code, tc.reason)
		}
		if tc.code != 0 {
			p.remove(t)
		} else {
			defer p.remove(t) // it is there when the runtime comes back
		}
	}
	for _, m := range mourners {
		if m.name != "events" && m.is(func(v cri.View) bool { return v.Events }) {
			t.Errorf("%s: it has events", m.name)
		}
		if got, _ := m.of(stays.container); len(got) != 0 {
			t.Errorf("%s: a container that runs has ended: %+v", m.name, got)
		}
	}

	// What ends while the runtime is away is found when it is back, and nothing is found again. containerd (2.2) makes its code
	// up then: unknownExitCode, with the time when it is back.
	d.stop(syscall.SIGKILL)
	begin := time.Now()
	stays.kill(t, d, "stays")
	d.start()
	for _, m := range mourners {
		m.check(t, stays, "stays", begin, 255, "Unknown")
		m.mu.Lock()
		if len(m.ended) != len(ends)+1 {
			t.Errorf("%s: %d ends, want %d: %+v", m.name, len(m.ended), len(ends)+1, m.ended)
		}
		m.mu.Unlock()
	}
	stays.remove(t)
}

// check waits for the end of a container and looks at all that is told of it.
func (m *mourner) check(t *testing.T, p *pod, name string, begin time.Time, code int32, reason string) {
	t.Helper()
	eventually(t, m.name+": end of "+name, func() bool { got, _ := m.of(p.container); return len(got) > 0 })
	got, at := m.of(p.container)
	want := cri.Container{ID: p.container, Name: "app", Image: image, Attempt: 2, SandboxID: p.sandbox, PodUID: "uid-" + name, PodNamespace: "shop", PodName: name, State: cri.StateExited, CreatedAt: got[0].CreatedAt}
	if len(got) != 1 || got[0] != want {
		t.Errorf("%s: %s ended as %+v, want once as %+v", m.name, name, got, want)
	}
	e, ok, err := m.c.Exit(t.Context(), p.container)
	first := e.Reason
	for end := time.Now().Add(3 * time.Second); reason == "OOMKilled" && err == nil && e.Reason != reason && time.Now().Before(end); {
		e, ok, err = m.c.Exit(t.Context(), p.container) // containerd takes the kernel's word of it apart from the end
	}
	if err != nil || !ok || e.Code != code || e.Reason != reason || e.Started.Sub(e.Finished) > startSkew || e.Finished.Before(begin) || e.Finished.After(time.Now()) {
		t.Errorf("%s: %s: end %+v, %v, %v, want code %d, %s, since %v", m.name, name, e, ok, err, code, reason, begin)
	}
	t.Logf("%-13s %-9s code %3d, %s (first %s), seen %v after it", m.name, name, e.Code, e.Reason, first, at[0].Sub(e.Finished).Round(time.Millisecond))
}
