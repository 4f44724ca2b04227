package sampler

import (
	"reflect"
	"testing"
)

// TestSamplesTravelWhole: every field of a sample comes out of its record as it went in.
func TestSamplesTravelWhole(t *testing.T) {
	fill := func(v reflect.Value) {
		for i := range v.NumField() {
			switch f := v.Field(i); f.Kind() {
			case reflect.Int64:
				f.SetInt(int64(i + 1))
			default:
				f.SetUint(uint64(i + 1))
			}
		}
	}
	var node, nodeBack NodeSample
	var nodeRec [nodeWidth]uint64
	fill(reflect.ValueOf(&node).Elem())
	node.encode(&nodeRec)
	if nodeBack.decode(nodeRec[:]); nodeBack != node {
		t.Errorf("node: %+v, want %+v", nodeBack, node)
	}
	var group, groupBack GroupSample
	var groupRec [groupWidth]uint64
	fill(reflect.ValueOf(&group).Elem())
	group.encode(&groupRec)
	if groupBack.decode(groupRec[:]); groupBack != group {
		t.Errorf("group: %+v, want %+v", groupBack, group)
	}
}
