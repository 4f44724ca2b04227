package imports

import (
	"slices"
	"strings"
	"testing"
)

// TestLayersBite feeds made-up import graphs to the rules: each forbidden edge must be found with its reason, each
// allowed one must not.
func TestLayersBite(t *testing.T) {
	tests := []struct {
		name string
		pkg  Package
		want string // part of the finding; "" means that nothing may be found
	}{
		{"cmd wires the agent", Package{ImportPath: "m/cmd/m", Imports: []string{"m/agent", "m/agent/status", "os"}}, ""},
		{"agent imports every line below", Package{ImportPath: "m/agent", Imports: []string{"m/agent/kube", "m/agent/policy", "m/cgroup", "m/ebpf/oomkill"}}, ""},
		{"a station imports parts, the core and edges", Package{ImportPath: "m/agent/oom", Imports: []string{"m/agent/podmap", "m/agent/oom/domain", "m/agent/status", "m/cgroup"}}, ""},
		{"a station imports the wiring", Package{ImportPath: "m/agent/oom", Imports: []string{"m/agent"}}, "cannot be tested or replaced alone"},
		{"a part imports a station", Package{ImportPath: "m/agent/podmap", Imports: []string{"m/agent/oom"}}, "tested through its constructor"},
		{"a part imports core and edges", Package{ImportPath: "m/agent/sampler", Imports: []string{"m/agent/ring", "m/cgroup"}}, ""},
		{"a room imports its own sub-folder", Package{ImportPath: "m/cri", XTestImports: []string{"m/cri/critest", "m/cri"}}, ""},
		{"a part imports the wiring", Package{ImportPath: "m/agent/evict", Imports: []string{"m/agent"}}, "cannot be tested or replaced alone"},
		{"a part imports a part", Package{ImportPath: "m/agent/evict", Imports: []string{"m/agent/kube"}}, "do not know each other"},
		{"a station imports a part", Package{ImportPath: "m/agent/once", Imports: []string{"m/agent/evict", "m/agent/judge"}}, ""},
		{"a station imports a station", Package{ImportPath: "m/agent/publish", Imports: []string{"m/agent/once"}}, "one stage of the loop"},
		{"a part imports a station", Package{ImportPath: "m/agent/evict", Imports: []string{"m/agent/once"}}, "one stage of the loop"},
		{"a test imports a part across the line", Package{ImportPath: "m/agent/evict", TestImports: []string{"m/agent/kube"}}, "in its tests"},
		{"the judge imports the core", Package{ImportPath: "m/agent/judge", Imports: []string{"m/agent/pressure", "m/agent/policy"}}, ""},
		{"the judge imports a part", Package{ImportPath: "m/agent/judge", Imports: []string{"m/agent/evict"}}, "imports only go down"},
		{"a test of a part uses another part's package for tests", Package{ImportPath: "m/agent/brake", TestImports: []string{"m/agent/ledger/ledgertest"}}, ""},
		{"a part uses another part's package for tests", Package{ImportPath: "m/agent/brake", Imports: []string{"m/agent/ledger/ledgertest"}}, "do not know each other"},
		{"core imports core", Package{ImportPath: "m/agent/policy", Imports: []string{"m/agent/pressure"}}, "the core has no edges"},
		{"core imports an edge", Package{ImportPath: "m/agent/ring", Imports: []string{"m/cgroup"}}, "the core has no edges"},
		{"core imports a part", Package{ImportPath: "m/agent/status", Imports: []string{"m/agent/evict"}}, "the core has no edges"},
		{"an edge imports an edge", Package{ImportPath: "m/cri", Imports: []string{"m/cgroup"}}, "stand alone"},
		{"an edge imports the core", Package{ImportPath: "m/ebpf/oomkill", Imports: []string{"m/agent/ring"}}, "stand alone"},
		{"something imports a command", Package{ImportPath: "m/agent", Imports: []string{"m/cmd/m"}}, "nothing builds on a command"},
		{"a test imports the wiring", Package{ImportPath: "m/test/golden", TestImports: []string{"m/agent"}}, "only cmd imports the wiring"},
		{"a test imports a wire type and a library of deploy", Package{ImportPath: "m/test/e2e", TestImports: []string{"m/agent/status", "m/deploy/image"}}, ""},
		{"the product imports a test", Package{ImportPath: "m/agent", Imports: []string{"m/test/cluster"}}, "not a part of it"},
		{"a test of a part brings up a cluster", Package{ImportPath: "m/agent/kube", TestImports: []string{"m/test/cluster"}}, ""},
		{"the product imports deploy", Package{ImportPath: "m/cmd/m", Imports: []string{"m/deploy/image"}}, "not a part of it"},
		{"a package without a line", Package{ImportPath: "m/agent/cache"}, "no line in the layer table"},
		{"a top-level package without a line", Package{ImportPath: "m/internal/x"}, "no line in the layer table"},
		{"an import without a line", Package{ImportPath: "m/agent", Imports: []string{"m/agent/cache"}}, "no line in the layer table"},

		{"client-go in its room", Package{ImportPath: "m/agent/kube", Imports: []string{"k8s.io/client-go/rest", "k8s.io/api/core/v1"}}, ""},
		{"client-go in an end-to-end test", Package{ImportPath: "m/test/e2e", TestImports: []string{"k8s.io/client-go/rest"}}, ""},
		{"client-go in evict", Package{ImportPath: "m/agent/evict", Imports: []string{"k8s.io/client-go/rest"}}, "stop at agent/kube"},
		{"API types in a test of podmap", Package{ImportPath: "m/agent/podmap", TestImports: []string{"k8s.io/api/core/v1"}}, "stop at agent/kube"},
		{"cri-api in its room", Package{ImportPath: "m/cri/critest", Imports: []string{"k8s.io/cri-api/pkg/apis/runtime/v1", "google.golang.org/grpc"}}, ""},
		{"cri-api in kube", Package{ImportPath: "m/agent/kube", Imports: []string{"k8s.io/cri-api/pkg/apis/runtime/v1"}}, "wire types stop at cri"},
		{"other Kubernetes libraries in cri", Package{ImportPath: "m/cri", Imports: []string{"k8s.io/apimachinery/pkg/types"}}, "stop at agent/kube"},
		{"grpc in kube", Package{ImportPath: "m/agent/kube", Imports: []string{"google.golang.org/grpc"}}, "only gRPC peer"},
		{"client_golang in status", Package{ImportPath: "m/agent/status", Imports: []string{"github.com/prometheus/client_golang/prometheus"}}, "rendered in one place"},
		{"cilium/ebpf in the sampler", Package{ImportPath: "m/agent/sampler", Imports: []string{"github.com/cilium/ebpf/ringbuf"}}, "loaded, attached and closed"},
		{"containerd/cgroups in the sampler", Package{ImportPath: "m/agent/sampler", Imports: []string{"github.com/containerd/cgroups/v3/cgroup2"}}, "answers 0 without an error"},
		{"a module whose name only begins alike", Package{ImportPath: "m/agent/evict", Imports: []string{"k8s.iox/client-go", "github.com/cilium/ebpfx"}}, ""},
		{"a foreign module that begins like ours", Package{ImportPath: "m/agent/policy", Imports: []string{"mother/agent"}}, ""},

		{"a library in status", Package{ImportPath: "m/agent/status", Imports: []string{"go.yaml.in/yaml/v3"}}, "small enough to be read whole"},
		{"a library in a test of status", Package{ImportPath: "m/agent/status", TestImports: []string{"github.com/google/go-cmp/cmp"}}, ""},
		{"golang.org/x in journal", Package{ImportPath: "m/agent/journal", Imports: []string{"golang.org/x/sys/unix", "log/slog"}}, ""},
		{"a library in the wiring", Package{ImportPath: "m/agent", Imports: []string{"go.yaml.in/yaml/v3"}}, ""},

		{"policy imports os", Package{ImportPath: "m/agent/policy", Imports: []string{"os"}}, "are pure"},
		{"pressure imports net/http", Package{ImportPath: "m/agent/pressure", Imports: []string{"net/http"}}, "are pure"},
		{"pressure imports context", Package{ImportPath: "m/agent/pressure", Imports: []string{"context"}}, "are pure"},
		{"policy imports log/slog", Package{ImportPath: "m/agent/policy", Imports: []string{"log/slog"}}, "are pure"},
		{"policy computes", Package{ImportPath: "m/agent/policy", Imports: []string{"cmp", "fmt", "math", "slices", "time"}}, ""},
		{"a test of policy reads a file", Package{ImportPath: "m/agent/policy", TestImports: []string{"os", "testing"}}, ""},
		{"status is not on the purity list", Package{ImportPath: "m/agent/status", Imports: []string{"net/http", "os"}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wantOne(t, Layers("m", []Package{tt.pkg}), tt.want)
		})
	}
}

func TestBinaryBites(t *testing.T) {
	tests := []struct {
		name string
		deps []string
		want string
	}{
		{"the product alone", []string{"m/cmd/m", "m/agent", "m/cri", "net/http", "k8s.io/client-go/rest"}, ""},
		{"a fake runtime", []string{"m/cmd/m", "m/cri/critest"}, "must not be reachable"},
		{"the testing package", []string{"m/cmd/m", "testing"}, "test support"},
		{"a sub-package of testing", []string{"m/cmd/m", "testing/iotest"}, "test support"},
		{"an HTTP test server", []string{"m/cmd/m", "net/http/httptest"}, "test support"},
		{"the image builder", []string{"m/cmd/m", "m/deploy/image"}, "are about the product"},
		{"a foreign package whose name ends in test", []string{"m/cmd/m", "example.org/contest"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var deps []Package
			for _, d := range tt.deps {
				deps = append(deps, Package{ImportPath: d})
			}
			wantOne(t, Binary("m", deps), tt.want)
		})
	}
}

// wantOne fails unless found is one finding that contains want, or nothing when want is "".
func wantOne(t *testing.T, found []Finding, want string) {
	t.Helper()
	if want == "" {
		if len(found) != 0 {
			t.Errorf("found %v, want nothing", found)
		}
		return
	}
	if len(found) != 1 || !strings.Contains(found[0].String(), want) {
		t.Errorf("found %v, want one finding with %q", found, want)
	}
	if slices.ContainsFunc(found, func(f Finding) bool { return f.Reason == "" || f.Subject == "" || f.What == "" }) {
		t.Errorf("finding without subject, fact or reason: %+v", found)
	}
}
