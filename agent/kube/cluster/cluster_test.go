package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/agent/kube"
	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// TestKubeletThresholds: where /configz cannot be asked, the kubelet's file with its drop-ins comes before our config, and
// the source is named.
func TestKubeletThresholds(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
	file := write("config.yaml", head+"evictionHard: {memory.available: 200Mi}\nevictionSoft: {memory.available: 300Mi}\nevictionSoftGracePeriod: {memory.available: 1m}\n")
	write("conf.d/10-more.conf", head+"evictionHard: {memory.available: 5%}\n")
	broken := write("broken.yaml", head+"evictionHard: {memory.available: lots}\n")
	for _, tc := range []struct {
		name   string
		cfg    Kubelet
		source string // part of it
		want   []string
		err    string
	}{
		{"file before config", Kubelet{ConfigFile: file, MemoryAvailable: "1Gi"}, file, []string{"hard memory.available 209715200", "hard allocatableMemory.available 209715200", "soft memory.available 314572800 grace 1m0s"}, ""},
		{"drop-in over file", Kubelet{ConfigFile: file, DropInDir: filepath.Join(dir, "conf.d")}, "1 drop-ins", []string{"hard memory.available 5 %"}, ""},
		{"config when there is no file", Kubelet{ConfigFile: filepath.Join(dir, "none"), MemoryAvailable: "1Gi"}, "kubelet.memoryAvailable", []string{"hard memory.available 1073741824", "hard allocatableMemory.available 1073741824"}, ""},
		{"nothing", Kubelet{ConfigFile: filepath.Join(dir, "none")}, "", nil, "only MemAvailable is guarded"},
		{"broken file", Kubelet{ConfigFile: broken}, "", nil, "lots"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := New(Options{Client: nil, Settings: Settings{Kubelet: tc.cfg}, V2: false, Source: func(string, string, string) {}})
			got, source, err := c.Thresholds(t.Context(), Node{})
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q in it", err, tc.err)
				}
				return
			}
			if err != nil || !strings.Contains(source, tc.source) {
				t.Fatalf("source %q, error %v, want %q", source, err, tc.source)
			}
			have := map[string]bool{}
			for _, th := range got {
				have[thresholdText(th)] = true
			}
			for _, w := range tc.want {
				if !have[w] {
					t.Errorf("thresholds %v, want %q among them", have, w)
				}
			}
		})
	}
}

// TestReplacedKubeletFile: a mount of one file goes on showing what was replaced on the node. Its text is no answer any more, and
// the moment at which that happened is seen.
func TestReplacedKubeletFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	const text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard: {memory.available: 200Mi}\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mount := fmt.Sprintf("/proc/self/fd/%d", f.Fd()) // like a mount it keeps the file that it was made of
	c := New(Options{Client: nil, Settings: Settings{Kubelet: Kubelet{ConfigFile: mount}}, V2: false, Source: func(string, string, string) {}})
	var last os.FileInfo
	c.fileChanged(&last)
	if _, _, err := c.Thresholds(t.Context(), Node{}); err != nil || c.fileChanged(&last) {
		t.Fatalf("before: %v, or a change was seen", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if !c.fileChanged(&last) || c.fileChanged(&last) {
		t.Error("the change is not seen, or more than once")
	}
	if _, _, err := c.Thresholds(t.Context(), Node{}); err == nil || !strings.Contains(err.Error(), "was replaced on the node") {
		t.Errorf("error %v, want that the file was replaced", err)
	}
}

func thresholdText(th pressure.Threshold) string {
	kind, value := "soft", strconv.FormatInt(int64(th.Bytes), 10)
	if th.Percent != 0 {
		value = strconv.FormatFloat(th.Percent, 'g', -1, 64) + " %"
	}
	if th.Hard {
		kind = "hard"
	}
	if th.Grace != 0 {
		value += " grace " + th.Grace.String()
	}
	return kind + " " + string(th.Signal) + " " + value
}

// TestRootFormulaFollowsTheKubelet: only on v2, and only of old kubelets, the node is read another way.
func TestRootFormulaFollowsTheKubelet(t *testing.T) {
	for _, tc := range []struct {
		name, version string
		v2            bool
		want          pressure.RootFormula
		says          bool // the source tells that the version is out of range
	}{
		{"v2, new", "v1.36.3", true, pressure.FromCgroup, false},
		{"v2, old", "v1.28.9", true, pressure.FromMeminfo, false},
		{"v1, old", "v1.28.9", false, pressure.FromCgroup, false},
		{"v2, of the future", "v1.99.0", true, pressure.FromCgroup, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			view := Node{Known: true}
			view.Node.KubeletVersion = tc.version
			cfg := kube.KubeletConfig{Source: "here", EvictionHard: map[string]string{"memory.available": "100Mi"}, EnforceNodeAllocatable: []string{"pods"}}
			c := New(Options{Client: nil, Settings: Settings{}, V2: tc.v2, Source: func(string, string, string) {}})
			got, source, err := c.thresholdsOf(cfg, view)
			if err != nil || len(got) != 2 || strings.Contains(source, tc.version) != tc.says {
				t.Fatalf("%+v from %q, error %v", got, source, err)
			}
			for _, th := range got {
				want := tc.want
				if th.Signal != pressure.MemoryAvailable {
					want = pressure.FromCgroup
				}
				if th.Root != want {
					t.Errorf("%s is read by formula %d, want %d", th.Signal, th.Root, want)
				}
			}
		})
	}
}

// TestLeaseOfADeadKubelet: a Lease counts by its age when it was read. What is not known lately is not dead.
func TestLeaseOfADeadKubelet(t *testing.T) {
	now := time.Unix(1e9, 0)
	ago := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	timeout := errors.New("time-out")
	for name, tc := range map[string]struct {
		view Lease
		want string // part of it; "" is alive
	}{
		"not read yet":                           {Lease{}, "not been read yet"},
		"fresh":                                  {Lease{asked: now, read: now, renewed: ago(10)}, ""},
		"as old as it may be":                    {Lease{asked: now, read: now, renewed: ago(40)}, ""},
		"too old":                                {Lease{asked: now, read: now, renewed: ago(41)}, "looks dead: its Lease was renewed 41 s before it was read"},
		"old":                                    {Lease{asked: now, read: now, renewed: ago(600)}, "renewed 600 s before"},
		"fresh when it was read 35 s ago":        {Lease{asked: ago(35), read: ago(35), renewed: ago(60)}, ""},
		"old when it was read 35 s ago":          {Lease{asked: ago(35), read: ago(35), renewed: ago(80)}, "looks dead"},
		"the next answer did not come":           {Lease{asked: ago(1), err: timeout, read: ago(20), renewed: ago(50)}, ""},
		"nor did others":                         {Lease{asked: ago(1), err: timeout, read: ago(41), renewed: ago(50)}, "read 41 s ago, and cannot be read now: time-out"},
		"dead, and the next answer did not come": {Lease{asked: ago(1), err: timeout, read: ago(20), renewed: ago(90)}, "looks dead"},
		"never answered":                         {Lease{asked: now, err: timeout}, "cannot be read: time-out"},
		"not asked for while calm":               {Lease{asked: ago(900), read: ago(900), renewed: ago(901)}, "read 900 s ago"},
		"a shorter duration":                     {Lease{asked: now, read: now, renewed: ago(15), lasts: 12 * time.Second}, "looks dead"},
		"a longer duration":                      {Lease{asked: now, read: now, renewed: ago(90), lasts: 2 * time.Minute}, ""},
		"forbidden":                              {Lease{asked: now, err: timeout, forbidden: true}, ""},
		"forbidden by now":                       {Lease{asked: now, err: timeout, forbidden: true, read: ago(500), renewed: ago(700)}, ""},
		"the kubelet's clock is ahead":           {Lease{asked: now, read: now, renewed: ago(-5)}, ""},
	} {
		if got := tc.view.Dead(now); (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q in it", name, got, tc.want)
		}
	}
}

const leasePath = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1"

// states keeps what was said of each source.
type states struct {
	mu  sync.Mutex // guards all
	all map[string][2]string
}

func (s *states) set(name, state, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string][2]string{}
	}
	s.all[name] = [2]string{state, detail}
}

// of returns state and detail of a source, both empty where none was told.
func (s *states) of(name string) (state, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[name][0], s.all[name][1]
}

// running runs a goroutine until the test ends, or until it is stopped.
func running(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// slowAPI answers the Lease, owners and empty lists, each path after its delay; a negative one is for ever.
type slowAPI struct {
	delay func(path string) time.Duration
	mu    sync.Mutex // guards got
	got   map[string]int
}

func (a *slowAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	a.mu.Lock()
	a.got[path]++
	a.mu.Unlock()
	switch d := a.delay(path); {
	case d < 0:
		<-r.Context().Done()
		return
	case d > 0:
		select {
		case <-time.After(d):
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case path == leasePath:
		fmt.Fprintf(w, `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","spec":{"renewTime":%q,"leaseDurationSeconds":40}}`, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"))
	case strings.Contains(path, "/replicasets/"):
		fmt.Fprintf(w, `{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"uid":%q},"spec":{"replicas":3}}`, "uid-"+filepath.Base(path))
	default:
		fmt.Fprint(w, `{"metadata":{},"items":[]}`)
	}
}

func (a *slowAPI) asked(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.got[path]
}

// clusterOf asks this API server.
func clusterOf(t *testing.T, api http.Handler) *Reader {
	t.Helper()
	server := httptest.NewServer(api)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(config, fmt.Appendf(nil, "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: x, context: {cluster: c, user: u}}], users: [{name: u, user: {}}], current-context: x}", server.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.New(kube.Options{Kubeconfig: config, NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return New(Options{Client: client, V2: true, Source: new(states).set})
}

// askedOwners are pods of so many workloads, each in a namespace of its own.
func askedOwners(n int) (want []Wish) {
	for i := range n {
		name := fmt.Sprint("web-", i)
		want = append(want, Wish{&policy.Pod{Namespace: fmt.Sprint("shop-", i), Name: name, UID: "pod-" + name,
			Owner: policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name, UID: "uid-" + name}}, 0})
	}
	return want
}

// TestASlowAPIServer: one look ends within about 5 s, whatever the API server is slow with; the Lease is known as soon as it
// is answered, and owners as soon as the slowest of them is.
func TestASlowAPIServer(t *testing.T) {
	const forever = -1
	all := func(d time.Duration) func(string) time.Duration { return func(string) time.Duration { return d } }
	for _, tc := range []struct {
		name   string
		delay  func(path string) time.Duration
		pods   int
		lease  time.Duration // from the start of the look until the Lease is known; 0: not within it
		owners int           // that are known at its end
		most   time.Duration
	}{
		{"fast", all(0), 5, time.Second, 5, time.Second},
		{"900 ms each", all(900 * time.Millisecond), 10, 2 * time.Second, 10, turnTimeout + 700*time.Millisecond},
		{"3 s each", all(3 * time.Second), 10, 4 * time.Second, 10, turnTimeout + 700*time.Millisecond},
		{"all but the Lease hang", func(path string) time.Duration {
			if path == leasePath {
				return 0
			}
			return forever
		}, 5, time.Second, 0, turnTimeout + 700*time.Millisecond},
		{"the Lease hangs", func(path string) time.Duration {
			if path == leasePath {
				return forever
			}
			return 0
		}, 5, 0, 5, turnTimeout + 700*time.Millisecond},
		{"one owner hangs", func(path string) time.Duration {
			if strings.HasSuffix(path, "/web-2") {
				return forever
			}
			return 0
		}, 5, time.Second, 4, turnTimeout + 700*time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			api := &slowAPI{delay: tc.delay, got: map[string]int{}}
			c := clusterOf(t, api)
			before := Lease{asked: time.Now().Add(-20 * time.Second), read: time.Now().Add(-20 * time.Second), renewed: time.Now().Add(-30 * time.Second)}
			c.lease.Store(&before)
			begin := time.Now()
			done := make(chan struct{})
			go func() {
				defer close(done)
				c.urgent(context.Background(), askedOwners(tc.pods))
			}()
			known := time.Duration(0)
			for running := true; running; {
				select {
				case <-done:
					running = false
				case <-time.After(5 * time.Millisecond):
				}
				view := c.lease.Load()
				if known == 0 && view.read.After(begin) {
					known = time.Since(begin)
				}
				if why := view.Dead(time.Now()); why != "" {
					t.Fatalf("after %v: %s", time.Since(begin), why)
				}
			}
			if took := time.Since(begin); took > tc.most {
				t.Errorf("the look took %v, want %v at most", took, tc.most)
			}
			if (known == 0) != (tc.lease == 0) || known > tc.lease {
				t.Errorf("the Lease was known after %v, want %v at most", known, tc.lease)
			}
			if tc.lease == 0 && (c.lease.Load().err == nil || !c.lease.Load().read.Equal(before.read)) {
				t.Errorf("view %+v after a Lease that was not answered", c.lease.Load())
			}
			if api.asked("/apis/policy/v1/namespaces/shop-0/poddisruptionbudgets") == 0 {
				t.Error("budgets are not asked for")
			}
			owners := 0
			for _, w := range *c.workloads.Load() {
				if w.Replicas == 3 {
					owners++
				}
			}
			if owners != tc.owners {
				t.Errorf("%d owners are known, want %d", owners, tc.owners)
			}
		})
	}
}

// TestTheLeaseDoesNotWaitForTheNode: while the node or the kubelet's configuration is waited for, the Lease is read.
func TestTheLeaseDoesNotWaitForTheNode(t *testing.T) {
	for _, hangs := range []string{"/api/v1/nodes/n1", "/version"} {
		t.Run(hangs, func(t *testing.T) {
			t.Parallel()
			api := &slowAPI{got: map[string]int{}, delay: func(path string) time.Duration {
				if path == hangs {
					return -1
				}
				return 0
			}}
			c := clusterOf(t, api)
			running(t, c.Run)
			for begin := time.Now(); api.asked(hangs) == 0; time.Sleep(5 * time.Millisecond) {
				if time.Since(begin) > 20*time.Second {
					t.Fatalf("%s is not asked for", hangs)
				}
			}
			begin := time.Now()
			for c.lease.Load().read.IsZero() {
				c.Ask(askedOwners(1))
				if time.Sleep(5 * time.Millisecond); time.Since(begin) > 2*time.Second {
					t.Fatalf("the Lease is not read while %s hangs: %s", hangs, c.lease.Load().Dead(time.Now()))
				}
			}
		})
	}
}
