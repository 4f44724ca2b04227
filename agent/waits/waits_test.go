package waits

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/podmap"
	"spillway/cgroup"
)

// TestRun: it looks at once, then each 15 s, and pods without readings are there with nothing.
func TestRun(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no error without a tree")
	}
	tree, err := cgroup.Open(cgroup.Options{Root: "../../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup", AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int32
		m := &podmap.Map{Pods: []podmap.Pod{{UID: "u", Path: "/gone"}}}
		r, err := New(Options{Tree: tree, Map: func() *podmap.Map { looks.Add(1); return m }})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Pods()) != 0 {
			t.Errorf("%+v before the first look", r.Pods())
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		time.Sleep(2*every + every/2)
		if w := r.Pods()["u"]; looks.Load() != 3 || w == nil || w.CPUPeriods != 0 || len(w.Pressure) != 0 {
			t.Errorf("%d looks, %+v", looks.Load(), r.Pods())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
