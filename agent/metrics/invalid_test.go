package metrics

import (
	"testing"
)

// A name that is no text must not stop the tracer.
func TestOOMKillOfAnInvalidName(t *testing.T) {
	m := New("1.0", DefaultPods, full)
	m.OOMKill(kill("shop", "bad\xff", "c", 0))
	same(t, m, "spillway_oom_kills_total{container=\"c\",domain=\"container\",namespace=\"shop\",pod=\"bad\uFFFD\"} 1")
}
