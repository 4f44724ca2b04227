package imports

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// line is one line of the layer table: its rooms may import rooms of lower lines only.
type line struct {
	name   string
	rooms  []string // folders below the module root; their sub-folders belong to them
	leaf   bool     // imports nothing of ours, lower lines neither
	reason string   // why a room of this line may import no more than it does
}

// core are the rooms of the line that decides and describes.
var core = []string{"agent/pressure", "agent/policy", "agent/ring", "agent/status", "agent/journal", "agent/triage"}

// layers is the layer table, uppermost line first.
var layers = []line{
	{name: "cmd", rooms: []string{"cmd"},
		reason: "cmd holds flags and subcommands only; nothing builds on a command"},
	{name: "agent", rooms: []string{"agent"},
		reason: "agent wires all parts together; a part that knows its wiring cannot be tested or replaced alone"},
	{name: "stations", rooms: []string{"agent/observe", "agent/once", "agent/publish", "agent/oom", "agent/exits", "agent/preflight", "agent/self", "agent/report", "agent/events", "agent/waits"},
		reason: "a station owns one stage of the loop or one goroutine and is tested through its constructor; agent hands one's results to the next"},
	{name: "parts", rooms: []string{"agent/sampler", "agent/podmap", "agent/kube", "agent/evict", "agent/ledger", "agent/notify", "agent/metrics", "agent/recording", "agent/reclaim", "agent/brake", "agent/config"},
		reason: "parts of the agent do not know each other; agent hands one's results to the next"},
	{name: "judge", rooms: []string{"agent/judge", "agent/incident", "agent/habit", "agent/timing", "agent/score", "agent/oom/domain"},
		reason: "the judge puts the pure core together and is as pure: agent and replay get the same answers from it; an incident is told from its record alone"},
	{name: "core", rooms: core, leaf: true,
		reason: "the core has no edges: it works on values, so that explain, replay and tables give the same answer anywhere"},
	{name: "edges", rooms: []string{"cgroup", "cri", "ebpf/oomkill"}, leaf: true,
		reason: "readers of kernel and runtime stand alone, usable without Kubernetes and without this agent"},
}

// outside are the rooms beside the layers: they may look at everything but the wiring, and the product looks at neither.
var outside = []string{"test", "deploy"}

// owner says that a foreign module is imported in one room only (test code of that room included) and below test/.
type owner struct {
	module string // import path prefix
	rooms  []string
	reason string
}

// owners is ordered: the first module that fits decides.
var owners = []owner{
	{"k8s.io/cri-api", []string{"cri"}, "the runtime's wire types stop at cri; others see its own Container"},
	{"k8s.io", []string{"agent/kube"}, "Kubernetes API types and clients stop at agent/kube; the core has its own small Pod"},
	{"sigs.k8s.io", []string{"agent/kube"}, "Kubernetes API types and clients stop at agent/kube; the core has its own small Pod"},
	{"github.com/prometheus/client_golang", []string{"agent/metrics"}, "metrics are rendered in one place, from the same status snapshot that the socket serves"},
	{"github.com/cilium/ebpf", []string{"ebpf/oomkill"}, "BPF objects are loaded, attached and closed in one place, so that a kernel without BPF costs one degraded state"},
	{"google.golang.org/grpc", []string{"cri"}, "the container runtime is the only gRPC peer; its time-outs and dial rules are set in one place"},
	{"go.etcd.io/bbolt", []string{"agent/ledger"}, "it panics or faults on a damaged file; the ledger checks what it maps and guards every call"},
	{"github.com/containerd/cgroups", []string{"cgroup"}, "it answers 0 without an error for unreadable memory files; cgroup alone knows which of its calls are safe"},
}

// pure are the packages that are functions of their arguments.
var pure = []string{"agent/pressure", "agent/policy", "agent/judge", "agent/triage", "agent/incident", "agent/habit", "agent/timing", "agent/score", "agent/oom/domain"}

const pureReason = "pressure, policy, judge, triage and incident are pure: same input, same output, no clock and no I/O; explain, replay and the stories of incidents depend on it"

// impure are the import path prefixes that a pure package must not name.
var impure = []string{"os", "net", "context", "io", "log", "syscall", "runtime", "sync", "math/rand", "crypto", "database", "testing", "golang.org/x/sys"}

// Layers checks every import of every package of the module against the layer table, the owners of foreign
// modules and the purity list.
func Layers(module string, packages []Package) []Finding {
	var found []Finding
	for _, p := range packages {
		from := room(module, p.ImportPath)
		if from == "" || !known(from) {
			found = append(found, Finding{p.ImportPath, "has no line in the layer table", "a package without a place in the architecture has no rule that holds it there"})
			continue
		}
		for _, imp := range distinct(p.Imports, p.TestImports, p.XTestImports) {
			inTest := !slices.Contains(p.Imports, imp)
			what := "imports " + imp
			if inTest {
				what = "imports " + imp + " in its tests"
			}
			if to := room(module, imp); to != "" {
				if inTest && (to == "test" || strings.HasSuffix(imp, "test")) {
					continue // tests of a part may use the cluster that the tests of the whole use, and another part's package for tests
				}
				if reason := forbidden(from, to); reason != "" {
					found = append(found, Finding{p.ImportPath, what, reason})
				}
				continue
			}
			switch o := ownerOf(imp); {
			case o != nil && !slices.Contains(o.rooms, from) && from != "test":
				found = append(found, Finding{p.ImportPath, what, o.reason})
			case o == nil && !inTest && slices.Contains(core, from) && hosted(imp) && !under(imp, "golang.org/x"):
				found = append(found, Finding{p.ImportPath, what, "the core stands on the standard library and golang.org/x: what decides has to stay small enough to be read whole"})
			}
			if !inTest && slices.Contains(pure, from) && slices.ContainsFunc(impure, func(prefix string) bool { return under(imp, prefix) }) {
				found = append(found, Finding{p.ImportPath, what, pureReason})
			}
		}
	}
	return found
}

// forbidden returns why a package of room from may not import one of room to; "" when it may.
func forbidden(from, to string) string {
	if from == to {
		return ""
	}
	if slices.Contains(outside, to) {
		// deploy describes the product; the tests of the whole may use its parts.
		if from == "test" {
			return ""
		}
		return fmt.Sprintf("%s is about the product, not a part of it", to)
	}
	to1 := level(to)
	if to1 < 0 {
		return "the imported package has no line in the layer table"
	}
	if slices.Contains(outside, from) {
		if to1 <= 1 {
			return "only cmd imports the wiring; from outside the product is used as a binary"
		}
		return ""
	}
	from1 := level(from)
	switch {
	case layers[from1].leaf:
		return layers[from1].reason
	case from1 > to1:
		return "imports only go down: " + layers[to1].reason
	case from1 == to1:
		return layers[from1].reason
	}
	return ""
}

// Binary checks the closure of imports of the shipped command.
func Binary(module string, deps []Package) []Finding {
	var found []Finding
	for _, d := range deps {
		p := d.ImportPath
		ours := under(p, module)
		switch {
		case p == "testing" || under(p, "testing") || p == "net/http/httptest":
			found = append(found, Finding{p, "is linked into the binary", "test support adds flags and code that production must not carry"})
		case ours && strings.HasSuffix(path.Base(p), "test"):
			found = append(found, Finding{p, "is linked into the binary", "a package made for tests must not be reachable in production"})
		case ours && slices.Contains(outside, room(module, p)):
			found = append(found, Finding{p, "is linked into the binary", "test and deploy are about the product, not parts of it"})
		}
	}
	return found
}

// room returns the room that an import path of the module lies in, the longest that fits; the path below the
// module root when no room does; "" for foreign packages.
func room(module, importPath string) string {
	if !under(importPath, module) {
		return ""
	}
	rel := strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
	best := ""
	consider := func(r string) {
		// agent's own sub-folders each need a line: the wiring package must not swallow a new part.
		if (r == rel || (r != "agent" && under(rel, r))) && len(r) > len(best) {
			best = r
		}
	}
	for _, l := range layers {
		for _, r := range l.rooms {
			consider(r)
		}
	}
	for _, r := range outside {
		consider(r)
	}
	if best != "" {
		return best
	}
	if rel == "" {
		return "."
	}
	return rel
}

func known(room string) bool { return level(room) >= 0 || slices.Contains(outside, room) }

// level returns the index of the line that has the room, −1 when none has.
func level(room string) int {
	return slices.IndexFunc(layers, func(l line) bool { return slices.Contains(l.rooms, room) })
}

func ownerOf(importPath string) *owner {
	for i := range owners {
		if under(importPath, owners[i].module) {
			return &owners[i]
		}
	}
	return nil
}

// hosted reports whether an import path lies outside the standard library: its first word names a host.
func hosted(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return strings.Contains(first, ".")
}

// under reports whether p is prefix or lies below it.
func under(p, prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") }

// distinct returns all strings of the lists once, sorted.
func distinct(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}
