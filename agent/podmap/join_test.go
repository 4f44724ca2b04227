package podmap

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"spillway/agent/policy"
	"spillway/cgroup"
	"spillway/cri"
)

const (
	uidA = "aaaaaaaa-0000-4000-8000-000000000001"
	uidB = "bbbbbbbb-0000-4000-8000-000000000002"
	// The kubelet names a static pod's cgroup after the hash of its manifest; the mirror pod has a UID of its own.
	uidStatic = "0123456789abcdef0123456789abcdef"
	uidMirror = "cccccccc-0000-4000-8000-000000000003"
)

func group(id uint64, uid string, containers ...cgroup.ContainerGroup) cgroup.PodGroup {
	path := "/kubepods/pod" + uid
	for i := range containers {
		containers[i].Path = path + "/" + containers[i].ContainerID
	}
	return cgroup.PodGroup{Path: path, ID: id, UID: uid, Containers: containers}
}

func ctr(id uint64, cid string) cgroup.ContainerGroup {
	return cgroup.ContainerGroup{ID: id, ContainerID: cid}
}

func apiPod(uid, name string, containers ...policy.Container) policy.Pod {
	return policy.Pod{Namespace: "shop", Name: name, UID: uid, Containers: containers}
}

func newTestJoiner(limits map[uint64]cgroup.Amount) *joiner {
	return newJoiner(func(_ string, id uint64) cgroup.Amount {
		if l, ok := limits[id]; ok {
			return l
		}
		return cgroup.Unlimited
	})
}

func TestJoin(t *testing.T) {
	fromRuntime := func(cid, name, uid, pod, sandbox string) cri.Container {
		return cri.Container{ID: cid, Name: name, PodUID: uid, PodName: pod, PodNamespace: "shop", SandboxID: sandbox}
	}
	for _, tc := range []struct {
		name       string
		groups     []cgroup.PodGroup
		containers []cri.Container
		pods       []policy.Pod
		owners     map[uint64]Owner // without path and limits
		api        map[string]string
		unmapped   int
	}{
		{
			name:   "API server and runtime",
			groups: []cgroup.PodGroup{group(10, uidA, ctr(11, "c1"), ctr(12, "s1"))}, pods: []policy.Pod{apiPod(uidA, "cart-x", policy.Container{Name: "cart", ID: "c1"})},
			containers: []cri.Container{fromRuntime("c1", "cart", uidA, "cart-x", "s1")},
			owners: map[uint64]Owner{10: {Namespace: "shop", Pod: "cart-x", PodUID: uidA}, 11: {Namespace: "shop", Pod: "cart-x", PodUID: uidA, Container: "cart", ContainerID: "c1"},
				12: {Namespace: "shop", Pod: "cart-x", PodUID: uidA, Container: "(sandbox)", ContainerID: "s1"}},
			api: map[string]string{uidA: uidA},
		},
		{
			name:   "only the API server",
			groups: []cgroup.PodGroup{group(10, uidA, ctr(11, "c1"), ctr(12, "s1"))}, pods: []policy.Pod{apiPod(uidA, "cart-x", policy.Container{Name: "cart", ID: "c1"})},
			owners: map[uint64]Owner{10: {Namespace: "shop", Pod: "cart-x", PodUID: uidA}, 11: {Namespace: "shop", Pod: "cart-x", PodUID: uidA, Container: "cart", ContainerID: "c1"},
				12: {Namespace: "shop", Pod: "cart-x", PodUID: uidA, ContainerID: "s1"}},
			api: map[string]string{uidA: uidA},
		},
		{
			name:   "only the runtime",
			groups: []cgroup.PodGroup{group(10, uidA, ctr(11, "c1"))}, containers: []cri.Container{fromRuntime("c1", "cart", uidA, "cart-x", "s1")},
			owners: map[uint64]Owner{10: {Namespace: "shop", Pod: "cart-x", PodUID: uidA}, 11: {Namespace: "shop", Pod: "cart-x", PodUID: uidA, Container: "cart", ContainerID: "c1"}},
		},
		{
			name:   "neither",
			groups: []cgroup.PodGroup{group(10, uidA, ctr(11, "c1")), group(20, uidB)},
			owners: map[uint64]Owner{10: {PodUID: uidA}, 11: {PodUID: uidA, ContainerID: "c1"}, 20: {PodUID: uidB}}, unmapped: 2,
		},
		{
			name:   "they know of other pods",
			groups: []cgroup.PodGroup{group(10, uidA)}, containers: []cri.Container{fromRuntime("c9", "x", uidB, "other", "s9")}, pods: []policy.Pod{apiPod(uidB, "other")},
			owners: map[uint64]Owner{10: {PodUID: uidA}}, unmapped: 1,
		},
		{
			name:   "a static pod and its mirror",
			groups: []cgroup.PodGroup{group(10, uidStatic, ctr(11, "c1"))}, containers: []cri.Container{fromRuntime("c1", "etcd", uidStatic, "etcd-node1", "s1")},
			pods:   []policy.Pod{{Namespace: "shop", Name: "etcd-node1", UID: uidMirror, Mirror: true}},
			owners: map[uint64]Owner{10: {Namespace: "shop", Pod: "etcd-node1", PodUID: uidMirror}, 11: {Namespace: "shop", Pod: "etcd-node1", PodUID: uidMirror, Container: "etcd", ContainerID: "c1"}},
			api:    map[string]string{uidStatic: uidMirror},
		},
		{
			name:   "a pod of the same name that is no mirror is another one",
			groups: []cgroup.PodGroup{group(10, uidA)}, containers: []cri.Container{fromRuntime("c1", "cart", uidA, "cart-0", "s1")}, pods: []policy.Pod{apiPod(uidB, "cart-0")},
			owners: map[uint64]Owner{10: {Namespace: "shop", Pod: "cart-0", PodUID: uidA}},
		},
		{
			name:   "recreated under its name: two UIDs",
			groups: []cgroup.PodGroup{group(10, uidA), group(20, uidB)}, pods: []policy.Pod{apiPod(uidA, "cart-0"), apiPod(uidB, "cart-0")},
			owners: map[uint64]Owner{10: {Namespace: "shop", Pod: "cart-0", PodUID: uidA}, 20: {Namespace: "shop", Pod: "cart-0", PodUID: uidB}},
			api:    map[string]string{uidA: uidA, uidB: uidB},
		},
		{name: "no cgroups", pods: []policy.Pod{apiPod(uidA, "cart-x")}, owners: map[uint64]Owner{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newTestJoiner(nil).join(time.Hour, "/kubepods", tc.groups, tc.containers, tc.pods)
			if d := cmp.Diff(tc.owners, m.owners, cmpopts.IgnoreFields(Owner{}, "Path", "ContainerLimit", "PodLimit")); d != "" {
				t.Errorf("owners (-want +got):\n%s", d)
			}
			if m.Unmapped != tc.unmapped || m.At != time.Hour || m.Kubepods != "/kubepods" || len(m.Pods) != len(tc.groups) {
				t.Errorf("map %+v", m)
			}
			for _, p := range m.Pods {
				if want := tc.api[p.UID]; (p.API == nil) != (want == "") || p.API != nil && p.API.UID != want {
					t.Errorf("pod %s is joined with %+v, want %q", p.UID, p.API, want)
				}
			}
		})
	}
}

func TestJoinSortsByPathAndNamesLimits(t *testing.T) {
	j := newTestJoiner(map[uint64]cgroup.Amount{10: 500, 11: 300})
	m := j.join(0, "/kubepods", []cgroup.PodGroup{group(20, uidB), group(10, uidA, ctr(11, "c1"), ctr(12, "c2"))}, nil, nil)
	if m.Pods[0].UID != uidA || m.Pods[1].UID != uidB {
		t.Errorf("order %s, %s", m.Pods[0].UID, m.Pods[1].UID)
	}
	o, ok := m.Lookup(11)
	if !ok || o.ContainerLimit != 300 || o.PodLimit != 500 || o.Path != "/kubepods/pod"+uidA+"/c1" {
		t.Errorf("owner of the container %+v", o)
	}
	if o, _ := m.Lookup(10); o.ContainerLimit != cgroup.Absent || o.PodLimit != 500 {
		t.Errorf("owner of the pod's own cgroup %+v", o)
	}
	if o, _ := m.Lookup(12); o.ContainerLimit != cgroup.Unlimited {
		t.Errorf("owner of a container without a limit %+v", o)
	}
}

func TestLookupOfNothing(t *testing.T) {
	if _, ok := (*Map)(nil).Lookup(1); ok {
		t.Error("a missing map knows an owner")
	}
	m := newTestJoiner(nil).join(0, "/kubepods", []cgroup.PodGroup{group(0, uidA)}, nil, nil)
	if _, ok := m.Lookup(0); ok {
		t.Error("id 0 is no cgroup")
	}
}

// OOM events may be late: a cgroup that is gone can be looked up for five minutes, with the names it had.
func TestTombstones(t *testing.T) {
	j := newTestJoiner(map[uint64]cgroup.Amount{11: 300})
	pods := []policy.Pod{apiPod(uidA, "cart-x", policy.Container{Name: "cart", ID: "c1"})}
	both := []cgroup.PodGroup{group(10, uidA, ctr(11, "c1"))}
	j.join(0, "/kubepods", both, nil, pods)
	m := j.join(time.Second, "/kubepods", []cgroup.PodGroup{group(10, uidA)}, nil, nil)
	o, ok := m.Lookup(11)
	if !ok || !o.Gone || o.Pod != "cart-x" || o.Container != "cart" || o.ContainerLimit != 300 {
		t.Errorf("a container that is gone: %+v, %v", o, ok)
	}
	if o, _ := m.Lookup(10); o.Gone {
		t.Error("its pod is not gone")
	}
	m = j.join(time.Second+tombstoneAge, "/kubepods", nil, nil, nil)
	if _, ok := m.Lookup(11); !ok {
		t.Error("forgotten too early")
	}
	m = j.join(time.Second+tombstoneAge+time.Millisecond, "/kubepods", nil, nil, nil)
	if _, ok := m.Lookup(11); ok {
		t.Error("remembered for ever")
	}
	if o, ok := m.Lookup(10); !ok || !o.Gone {
		t.Errorf("its pod went later: %+v", o)
	}
}

func TestACgroupThatComesBackIsNotGone(t *testing.T) {
	j := newTestJoiner(nil)
	g := []cgroup.PodGroup{group(10, uidA)}
	j.join(0, "/kubepods", g, nil, nil)
	j.join(time.Second, "/kubepods", nil, nil, nil)
	if o, ok := j.join(2*time.Second, "/kubepods", g, nil, nil).Lookup(10); !ok || o.Gone {
		t.Errorf("%+v, %v", o, ok)
	}
}

func TestTombstonesAreBounded(t *testing.T) {
	j := newTestJoiner(nil)
	for round := range 6 {
		var groups []cgroup.PodGroup
		for i := range 1000 {
			groups = append(groups, group(uint64(round*1000+i+1), fmt.Sprintf("%08x-0000-4000-8000-000000000000", round*1000+i)))
		}
		j.join(time.Duration(round)*time.Second, "/kubepods", groups, nil, nil)
	}
	if n := len(j.dead); n == 0 || n > maxTombstones {
		t.Errorf("%d tombstones, want at most %d", n, maxTombstones)
	}
	if len(j.limits) != 1000 {
		t.Errorf("%d limits are kept for 1000 cgroups", len(j.limits))
	}
	m := j.join(time.Hour, "/kubepods", nil, nil, nil)
	if len(j.dead) > 1000 || len(m.owners) > 1000 {
		t.Errorf("%d tombstones an hour later", len(j.dead))
	}
}

// A source that goes away takes no names with it.
func TestNamesAreKeptWhenASourceGoesAway(t *testing.T) {
	j := newTestJoiner(nil)
	g := func() []cgroup.PodGroup { return []cgroup.PodGroup{group(10, uidA, ctr(11, "c1"))} }
	j.join(0, "/kubepods", g(), nil, []policy.Pod{apiPod(uidA, "cart-x", policy.Container{Name: "cart", ID: "c1"})})
	for i := range 3 {
		m := j.join(time.Duration(i)*time.Second, "/kubepods", g(), nil, nil)
		if o, _ := m.Lookup(11); o.Namespace != "shop" || o.Pod != "cart-x" || o.Container != "cart" || o.Gone {
			t.Fatalf("join %d: %+v", i, o)
		}
		if m.Pods[0].API != nil {
			t.Fatal("a pod that the API server does not list any more cannot be evicted through it")
		}
	}
}

// Limits are read once in 30 s per cgroup, at once for a new one, and again when the reading failed.
func TestLimitCache(t *testing.T) {
	reads := map[uint64]int{}
	value := cgroup.Amount(100)
	j := newJoiner(func(path string, id uint64) cgroup.Amount {
		if !strings.HasPrefix(path, "/kubepods/pod") {
			t.Errorf("path %q", path)
		}
		reads[id]++
		return value
	})
	g := []cgroup.PodGroup{group(10, uidA)}
	limit := func(at time.Duration) cgroup.Amount {
		o, _ := j.join(at, "/kubepods", g, nil, nil).Lookup(10)
		return o.PodLimit
	}
	limit(0)
	value = 200
	for at := time.Second; at < limitAge; at += time.Second {
		if got := limit(at); got != 100 || reads[10] != 1 {
			t.Fatalf("at %v: limit %v after %d reads", at, got, reads[10])
		}
	}
	if got := limit(limitAge); got != 200 || reads[10] != 2 {
		t.Errorf("limit %v after %d reads, want the resized one", got, reads[10])
	}
	value = cgroup.Absent
	limit(2 * limitAge)
	value = 300
	if got := limit(2*limitAge + time.Second); got != 300 {
		t.Errorf("limit %v: a reading that failed must be tried again", got)
	}
}

// A container that was killed at its start is gone before the runtime, or the API server, tells its name.
func TestTheDeadAreNamedLater(t *testing.T) {
	const id = "abcd"
	for name, tell := range map[string]func(j *joiner) *Map{
		"runtime": func(j *joiner) *Map {
			return j.join(2*time.Second, "/kubepods", nil, []cri.Container{{ID: id, Name: "heap", PodUID: uidA, PodNamespace: "shop", PodName: "cart"}}, nil)
		},
		"API server": func(j *joiner) *Map {
			return j.join(2*time.Second, "/kubepods", nil, nil, []policy.Pod{apiPod(uidA, "cart", policy.Container{ID: id, Name: "heap"})})
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJoiner(func(string, uint64) cgroup.Amount { return cgroup.Absent })
			if o, _ := j.join(time.Second, "/kubepods", []cgroup.PodGroup{group(7, uidA, ctr(8, id))}, nil, nil).Lookup(8); o.IsNamed() {
				t.Fatalf("%+v is named by nobody", o)
			}
			for range 2 {
				o, ok := tell(j).Lookup(8)
				if !ok || !o.Gone || !o.IsNamed() || o.Namespace != "shop" || o.Pod != "cart" || o.Container != "heap" {
					t.Errorf("owner %+v, want the dead container heap of shop/cart", o)
				}
			}
			if o, ok := j.join(3*time.Second, "/kubepods", nil, nil, nil).Lookup(8); !ok || o.Container != "heap" {
				t.Errorf("owner %+v, want the name kept", o)
			}
		})
	}
}
