//go:build e2e

package cri_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"spillway/cri"
)

// Times of the test: short ones, so that the bounds that are checked mean something.
const (
	e2ePoll    = 500 * time.Millisecond
	e2eTimeout = time.Second
)

// pod is a sandbox with one container in a real runtime.
type pod struct {
	rt                 runtimeapi.RuntimeServiceClient
	sandbox, container string
}

// runPod runs a sandbox and creates its container, which runs pause with the arguments; limit is its memory in bytes, 0: none.
func runPod(t *testing.T, d *daemon, rt runtimeapi.RuntimeServiceClient, name string, labelled bool, limit int64, args ...string) *pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: "uid-" + name},
		LogDirectory: d.path("pods"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/" + d.cgroup + "/" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{ // the host's network: no CNI plugin takes part
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
			},
		},
	}
	sb, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run sandbox %s: %v", name, err)
	}
	p := &pod{rt: rt, sandbox: sb.GetPodSandboxId()}
	cc := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "app", Attempt: 2},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  append([]string{"/pause"}, args...),
		LogPath:  name + ".log",
		Linux:    &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: limit}},
	}
	if labelled {
		cc.Labels = map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": "uid-" + name, "io.kubernetes.container.name": "app"}
	}
	c, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, Config: cc, SandboxConfig: config})
	if err != nil {
		t.Fatalf("create container of %s: %v", name, err)
	}
	p.container = c.GetContainerId()
	return p
}

func (p *pod) start(t *testing.T) {
	t.Helper()
	if _, err := p.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: p.container}); err != nil {
		t.Fatalf("start container %s: %v", p.container, err)
	}
}

func (p *pod) stop(t *testing.T) {
	t.Helper()
	if _, err := p.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: p.container, Timeout: 5}); err != nil {
		t.Fatalf("stop container %s: %v", p.container, err)
	}
}

func (p *pod) remove(t *testing.T) {
	t.Helper()
	if _, err := p.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		t.Errorf("stop sandbox %s: %v", p.sandbox, err)
	}
	if _, err := p.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		t.Errorf("remove sandbox %s: %v", p.sandbox, err)
	}
}

// state is true for a view in which the container of p is in the state.
func (p *pod) state(s cri.State) func(cri.View) bool {
	return func(w cri.View) bool {
		for _, c := range w.Containers {
			if c.ID == p.container {
				return w.Synced && c.State == s
			}
		}
		return false
	}
}

// scenario is one containerd with two views of it, taken through its life in order.
type scenario struct {
	t *testing.T
	d *daemon

	polled  *views // lists every e2ePoll
	events  *views // lists once an hour: what it sees, events, gaps or Refresh brought
	np, ne  int    // views consumed of each
	labels  *pod   // has the kubelet's labels
	sandbox *pod   // has none: only its sandbox names the pod
}

func TestContainerd(t *testing.T) {
	d := newDaemon(t)
	s := &scenario{
		t: t, d: d,
		polled: watch(t, cri.Options{Endpoint: d.endpoint(), PollInterval: e2ePoll, Timeout: e2eTimeout}),
		events: watch(t, cri.Options{Endpoint: d.endpoint(), PollInterval: rare, Timeout: e2eTimeout}),
	}
	s.begin()
	s.startPods()
	s.checkList()
	s.restart("restart", syscall.SIGTERM)
	s.restart("crash", syscall.SIGKILL)
	s.freeze()
	s.endPods()
}

// onPolled and onEvents wait for the next view for which ok holds.
func (s *scenario) onPolled(what string, ok func(cri.View) bool) (w cri.View) {
	s.t.Helper()
	w, s.np = s.polled.await(what, s.np, ok)
	return w
}

func (s *scenario) onEvents(what string, ok func(cri.View) bool) (w cri.View) {
	s.t.Helper()
	w, s.ne = s.events.await(what, s.ne, ok)
	return w
}

func faulty(w cri.View) bool { return w.Err != "" }
func hung(w cri.View) bool   { return w.Hung }
func count(n int) func(cri.View) bool {
	return func(w cri.View) bool { return w.Synced && len(w.Containers) == n }
}

func (s *scenario) begin() {
	if w := s.onPolled("no containerd yet", faulty); w.Synced || !strings.Contains(w.Err, "no such file") {
		s.t.Errorf("before the start: %+v", w)
	}
	s.d.start()
	s.onPolled("first view", count(0))
	s.onEvents("event stream", live)
	v, err := s.polled.c.Version(s.t.Context())
	if err != nil || v.Runtime != "containerd" || !strings.HasPrefix(v.Version, "v2.") || v.APIVersion != "v1" || v.Endpoint != s.d.endpoint() {
		s.t.Errorf("version %+v, %v", v, err)
	}
	s.t.Logf("%+v", v)
}

func (s *scenario) startPods() {
	s.d.importImage()
	rt := s.d.cli()
	s.labels, s.sandbox = runPod(s.t, s.d, rt, "cart", true, 0), runPod(s.t, s.d, rt, "pay", false, 0)
	s.onEvents("both created", func(w cri.View) bool {
		return s.labels.state(cri.StateCreated)(w) && s.sandbox.state(cri.StateCreated)(w)
	})
	for _, p := range []*pod{s.labels, s.sandbox} {
		start := time.Now()
		p.start(s.t)
		started := time.Now()
		s.onEvents("running", p.state(cri.StateRunning))
		s.t.Logf("StartContainer took %v, the view %v more", started.Sub(start), time.Since(started))
		s.onPolled("running", p.state(cri.StateRunning))
	}
}

func (s *scenario) checkList() {
	cs, err := s.polled.c.List(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	want := []cri.Container{
		{ID: s.labels.container, Name: "app", Image: image, Attempt: 2, SandboxID: s.labels.sandbox, PodUID: "uid-cart", PodNamespace: "shop", PodName: "cart", State: cri.StateRunning},
		{ID: s.sandbox.container, Name: "app", Image: image, Attempt: 2, SandboxID: s.sandbox.sandbox, PodUID: "uid-pay", PodNamespace: "shop", PodName: "pay", State: cri.StateRunning},
	}
	byName := cmpopts.SortSlices(func(a, b cri.Container) bool { return a.PodName < b.PodName })
	if diff := cmp.Diff(want, cs, byName, cmpopts.IgnoreFields(cri.Container{}, "CreatedAt")); diff != "" {
		s.t.Error(diff)
	}
	for _, c := range cs {
		if age := time.Since(c.CreatedAt); age < 0 || age > time.Minute {
			s.t.Errorf("%s was created %v ago", c.PodName, age)
		}
		// The last part of the cgroup path is the id.
		_, v1 := os.Stat(filepath.Join("/sys/fs/cgroup/memory", s.d.cgroup, c.PodName, c.ID))
		_, v2 := os.Stat(filepath.Join("/sys/fs/cgroup", s.d.cgroup, c.PodName, c.ID))
		if v1 != nil && v2 != nil {
			s.t.Errorf("cgroup of %s: %v, %v", c.PodName, v1, v2)
		}
	}
}

// restart ends containerd and starts it again; the containers go on.
func (s *scenario) restart(how string, sig syscall.Signal) {
	s.d.stop(sig)
	s.onEvents(how, faulty)
	w := s.onPolled(how, faulty)
	if w.Synced || w.Events || w.Hung || len(w.Containers) != 2 {
		s.t.Errorf("%s: view %+v", how, w)
	}
	s.t.Logf("%s: %s", how, w.Err)
	start := time.Now()
	s.d.start()
	both := func(w cri.View) bool {
		return live(w) && s.labels.state(cri.StateRunning)(w) && s.sandbox.state(cri.StateRunning)(w)
	}
	s.onPolled(how+": both containers again", both)
	s.onEvents(how+": both containers again", both)
	s.t.Logf("%s: both views are complete with events %v after the start", how, time.Since(start))
}

func (s *scenario) freeze() {
	s.d.signal(syscall.SIGSTOP)
	start := time.Now()
	w := s.onPolled("freeze", hung)
	took := time.Since(start)
	if took > e2ePoll+e2eTimeout+500*time.Millisecond {
		s.t.Errorf("the freeze was named after %v", took)
	}
	if w.Synced || !strings.Contains(w.Err, "the runtime hangs: no answer within 1s") || w.Latency < e2eTimeout*9/10 || len(w.Containers) != 2 {
		s.t.Errorf("view %+v", w)
	}
	s.t.Logf("freeze named after %v: %s", took, w.Err)

	fresh := dial(s.t, cri.Options{Endpoint: s.d.endpoint(), Timeout: e2eTimeout})
	for name, c := range map[string]*cri.Client{"connected": s.polled.c, "not connected": fresh} {
		start := time.Now()
		_, err := c.List(s.t.Context())
		if took := time.Since(start); !errors.Is(err, cri.ErrHung) || took > e2eTimeout+500*time.Millisecond {
			s.t.Errorf("%s: %v after %v", name, err, took)
		}
	}
	s.events.c.Refresh()
	s.onEvents("freeze, on request", hung)

	s.d.signal(syscall.SIGCONT)
	start = time.Now()
	s.onPolled("thaw", live)
	s.t.Logf("thaw seen after %v", time.Since(start))
	s.onEvents("thaw", live)
}

func (s *scenario) endPods() {
	c := s.polled.c
	if _, ok, err := c.Exit(s.t.Context(), s.labels.container); ok || err != nil {
		s.t.Errorf("a running container has an end: %v, %v", ok, err)
	}
	s.labels.stop(s.t)
	s.onEvents("exited", s.labels.state(cri.StateExited))
	e, ok, err := c.Exit(s.t.Context(), s.labels.container)
	if err != nil || !ok || e.Code != 0 || e.Reason != "Completed" || !e.Started.Before(e.Finished) || time.Since(e.Finished) > time.Minute {
		s.t.Errorf("end %+v, %v, %v, want code 0, Completed, a moment ago", e, ok, err)
	}
	s.t.Logf("end %+v", e)
	if _, _, err := c.Exit(s.t.Context(), strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "not found") {
		s.t.Errorf("a container that is not there: %v", err)
	}
	s.labels.remove(s.t)
	s.onEvents("one pod removed", count(1))
	s.sandbox.remove(s.t)
	s.onEvents("both removed", count(0))
	s.onPolled("both removed", count(0))
}
