package sampler

import (
	"reflect"
	"testing"

	"spillway/cgroup"
)

// fill gives every field of a sample a number of its own.
func fill(sample any) {
	v := reflect.ValueOf(sample).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.CanInt() {
			f.SetInt(int64(1000 + i))
		} else {
			f.SetUint(uint64(1000 + i))
		}
	}
}

// What goes into a ring comes out of it, every figure in its own place.
func TestRecordsRoundTrip(t *testing.T) {
	var node, nodeBack NodeSample
	fill(&node)
	var nodeRec [nodeWidth]uint64
	node.encode(&nodeRec)
	nodeBack.decode(nodeRec[:])
	if nodeBack != node {
		t.Errorf("node sample %+v comes back as %+v", node, nodeBack)
	}
	var group, groupBack GroupSample
	fill(&group)
	var groupRec [groupWidth]uint64
	group.encode(&groupRec)
	groupBack.decode(groupRec[:])
	if groupBack != group {
		t.Errorf("group sample %+v comes back as %+v", group, groupBack)
	}
	var slow, slowBack SlowSample
	fill(&slow)
	var slowRec [slowWidth]uint64
	slow.encode(&slowRec)
	slowBack.decode(slowRec[:])
	if slowBack != slow {
		t.Errorf("slow sample %+v comes back as %+v", slow, slowBack)
	}
	if n := reflect.TypeFor[SlowSample]().NumField(); n != slowWidth {
		t.Errorf("%d fields in a record of %d words", n, slowWidth)
	}
}

func TestLess(t *testing.T) {
	for _, tc := range []struct{ a, b, want cgroup.Amount }{
		{7, 5, 2}, {5, 7, 0}, {5, 5, 0}, {cgroup.Absent, 1, cgroup.Absent}, {1, cgroup.Absent, cgroup.Absent}, {cgroup.Unlimited, 1, cgroup.Absent},
	} {
		if got := less(tc.a, tc.b); got != tc.want {
			t.Errorf("%v less %v is %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
}
