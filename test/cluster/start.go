package cluster

import (
	"context"
	"testing"
	"time"
)

// Start brings a cluster up for one test and takes it down at its end; when the test failed, the last lines of every
// component go to the test's output first. The cluster also goes when the test binary dies.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	o.Detach = false
	if o.Wait == 0 {
		o.Wait = 15 * time.Minute
	}
	if o.Progress == nil {
		o.Progress = t.Output()
	}
	c, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.DumpLogs(t.Output(), 20)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}
