package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"spillway/agent/policy"
)

// scenario is one load and what is expected of it.
type scenario struct {
	name      string
	want      string
	seconds   float64
	node      func() *node
	check     func(r *result) string // what is wrong, "" when nothing is
	blind     func(t float64) bool   // no reading of anything succeeds
	clock     func(t float64) time.Duration
	explained func(t float64) float64
	back      func(n *node, x *pod, t float64) // what the controller does after an eviction
	restart   float64                          // when the agent is started again, without what it remembered; 0: never
	answer    func(pod string) policy.Answer   // of the API server to an eviction; nil: accepted
}

// goes expects these evictions, in this order, and none by the kubelet.
func goes(names ...string) func(*result) string {
	return func(r *result) string {
		if got := strings.Join(r.names(), " "); got != strings.Join(names, " ") {
			return fmt.Sprintf("evicted [%s], want %v", got, names)
		}
		if len(r.kubelet) > 0 {
			return "the kubelet had to act"
		}
		if r.lowest < 0 {
			return "the margin went below 0"
		}
		return ""
	}
}

// nobody expects no eviction, whatever the kubelet does.
func nobody(r *result) string {
	if len(r.evicted) > 0 {
		return "somebody was evicted"
	}
	return ""
}

// outside expects that the cause is named, and nobody to be evicted but one pod when nothing is left.
func outside(r *result) string {
	if r.held["cause-outside-pods"] == 0 && r.states[policy.StateStandBy] == 0 {
		return "no decision says why no pod is evicted"
	}
	if len(r.evicted) > 1 || len(r.evicted) == 1 && r.evicted[0].margin > 0 {
		return "somebody was evicted"
	}
	return ""
}

const culprit = "shop/recommendation"

func scenarios() []*scenario {
	var all []*scenario
	add := func(s scenario) { all = append(all, &s) }

	for _, rate := range []float64{20, 50, 100, 200, 400, 800, 1200, 2000} {
		add(scenario{
			name: fmt.Sprintf("leak of %.0f MiB/s", rate), want: "the leaking pod goes, alone", seconds: 7500/rate + 60,
			node: func() *node { return shop(leak(2*gib, rate*mib, 0)) }, check: goes(culprit),
		})
	}
	add(scenario{
		name: "leak of 50 MiB/s that ignores SIGTERM for its 30 s of grace", want: "the leaking pod goes, alone", seconds: 250,
		node: func() *node {
			n := shop(leak(2*gib, 50*mib, 0))
			n.pods[2].exit = 30 * time.Second
			return n
		}, check: goes(culprit),
	})
	add(scenario{
		name: "leak of 200 MiB/s that ignores SIGTERM for its 30 s of grace", want: "the leaking pod goes, alone, and its grace is cut short when the threshold is near", seconds: 100,
		node: func() *node {
			n := shop(leak(2*gib, 200*mib, 0))
			n.pods[2].exit = 30 * time.Second
			return n
		}, check: func(r *result) string {
			if len(r.short) != 1 {
				return fmt.Sprintf("grace cut short %d times", len(r.short))
			}
			return goes(culprit)(r)
		},
	})
	add(scenario{
		name: "founding case: `recommendation` has a CPU request and no memory limit, as large as `payment` and `cart`, batch pods are younger", want: "`recommendation` goes, alone", seconds: 200,
		node: func() *node { return shop(leak(2*gib, 60*mib, 0)) }, check: goes(culprit),
	})
	add(scenario{
		name: "two pods leak 150 MiB/s each at once", want: "both go, no other pod", seconds: 120,
		node: func() *node {
			n := shop(leak(2*gib, 150*mib, 0))
			n.pods[1].anon = leak(2*gib, 150*mib, 0)
			return n
		}, check: func(r *result) string {
			if len(r.evicted) != 2 || !contains(r.names(), culprit) || !contains(r.names(), "shop/cart") || len(r.kubelet) > 0 {
				return "want recommendation and cart"
			}
			return ""
		},
	})
	add(scenario{
		name: "twenty pods leak 10 MiB/s each", want: "leaking pods go until what is left is no shortage; round limit and hourly cap hold", seconds: 400,
		node: func() *node {
			n := shop(flat(2 * gib))
			for i := range 20 {
				n.pods = append(n.pods, newPod("small", fmt.Sprintf("worker-%02d", i), policy.Burstable, leak(100*mib, 10*mib, 0)))
			}
			return n
		}, check: func(r *result) string {
			if len(r.evicted) == 0 || len(r.evicted) > 10 {
				return fmt.Sprintf("%d evictions, want 1 to 10", len(r.evicted))
			}
			for _, name := range r.names() {
				if !strings.HasPrefix(name, "small/") {
					return name + " is innocent"
				}
			}
			return ""
		},
	})
	add(scenario{
		name: "leak of 100 MiB/s up to the pod's own limit of 5 GiB, which fits", want: "no pod", seconds: 120,
		node: func() *node {
			n := shop(leak(2*gib, 100*mib, 5*gib))
			n.pods[2].facts.Limit, n.pods[2].facts.LimitSet = 5*gib, true
			return n
		}, check: nobody,
	})
	add(scenario{
		name: "leak of 100 MiB/s that stops while the margin is over slope x (lead time + 2 s)", want: "no pod", seconds: 120,
		node: func() *node { return shop(leak(2*gib, 100*mib, 4.2*gib)) }, check: nobody,
	})
	add(scenario{
		name: "leak of 100 MiB/s that stops with 2 GiB of margin left, later than can be told from a leak", want: "the pod goes: it turned too late (printed, not counted as false)", seconds: 120,
		node: func() *node { return shop(leak(2*gib, 100*mib, 7.2*gib)) }, check: goes(culprit),
	})
	for _, c := range []struct {
		period, height float64
	}{{4, 300}, {8, 600}, {20, 1500}} {
		add(scenario{
			name: fmt.Sprintf("sawtooth of %.0f MiB every %.0f s (garbage collection)", c.height, c.period), want: "no pod", seconds: 240,
			node: func() *node {
				return shop(func(t float64) float64 {
					if t < 0 {
						return 2 * gib
					}
					return 2*gib + c.height*mib*math.Mod(t, c.period)/c.period
				})
			}, check: nobody,
		})
	}
	for _, c := range []struct {
		rate  float64
		want  string
		check func(*result) string
	}{
		{400, "no pod", nobody},
		{1000, "the pod goes: with the first lead time of 31 s it cannot be told from a leak (printed, not counted as false)", goes(culprit)},
	} {
		add(scenario{
			name: fmt.Sprintf("spike: %.0f MiB/s for 2 s, given back after 2 s more", c.rate), want: c.want, seconds: 60,
			node: func() *node {
				return shop(func(t float64) float64 {
					if t < 0 || t > 4 {
						return 2 * gib
					}
					return 2*gib + c.rate*mib*min(t, 2)
				})
			}, check: c.check,
		})
	}
	for _, c := range []struct {
		name  string
		cache curve
	}{
		{"page cache: one read of a file of 7 GiB at 300 MiB/s, a fifth of it becomes active", leak(0, 60*mib, 1.4*gib)},
		{"page cache: a file of 9 GiB read again and again, all of it becomes active", leak(0, 300*mib, 9*gib)},
	} {
		add(scenario{
			name: c.name, want: "no pod: cache is no leak", seconds: 120,
			node: func() *node {
				n := shop(flat(2 * gib))
				n.pods[2].cache = c.cache
				return n
			}, check: nobody,
		})
	}
	add(scenario{
		name: "page cache grows 200 MiB/s in one pod while another leaks 100 MiB/s", want: "the leaking pod goes, alone", seconds: 100,
		node: func() *node {
			n := shop(leak(2*gib, 100*mib, 0))
			n.pods[0].cache = leak(0, 200*mib, 1.5*gib)
			return n
		}, check: goes(culprit),
	})
	add(scenario{
		name: "tmpfs: a pod fills its emptyDir of medium Memory at 100 MiB/s", want: "that pod goes, alone", seconds: 120,
		node: func() *node {
			n := shop(flat(2 * gib))
			n.pods[2].shmem = leak(0, 100*mib, 0)
			n.pods[2].facts.Volumes.MemoryEmptyDir = true
			return n
		}, check: goes(culprit),
	})
	add(scenario{
		name: "slab grows 50 MiB/s in the kernel", want: "no pod while it grows, the cause is outside the pods; at critical, with no memory left, one pod at most", seconds: 150,
		node: func() *node {
			n := shop(flat(2 * gib))
			n.kernel = leak(0, 50*mib, 7*gib)
			return n
		}, check: outside,
	})
	add(scenario{
		name: "a process of the host leaks 100 MiB/s", want: "the same", seconds: 100,
		node: func() *node {
			n := shop(flat(2 * gib))
			n.system = leak(gib, 100*mib, 0)
			return n
		}, check: outside,
	})
	add(scenario{
		name: "a process of the host takes 6.4 GiB at 200 MiB/s and keeps it, 100 MiB over the kubelet's threshold", want: "one pod of the lowest priority whose memory ends it, at critical and not before", seconds: 120,
		node: func() *node {
			n := shop(flat(2 * gib))
			n.system = leak(gib, 200*mib, 7.3*gib)
			n.pods[0].facts.Priority, n.pods[1].facts.Priority, n.pods[2].facts.Priority = 1000, 1000, 500
			for _, p := range n.pods[3:] {
				p.facts.Priority = -10
			}
			return n
		}, check: func(r *result) string {
			if len(r.evicted) != 1 || !strings.HasPrefix(r.evicted[0].pod, "batch/") || r.evicted[0].margin > 0 {
				return "want one batch pod, with the margin below 0"
			}
			return ""
		},
	})
	add(scenario{
		name: "a pod thrashes at its own limit: the node waits for memory half of the time", want: "no pod", seconds: 120,
		node: func() *node {
			n := shop(flat(2 * gib))
			n.pods[2].facts.Limit, n.pods[2].facts.LimitSet = 2*gib, true
			n.stall = func(t float64) float64 {
				if t < 0 {
					return 0
				}
				return 0.5
			}
			return n
		}, explained: func(float64) float64 { return 1 }, check: nobody,
	})
	surge := func(recommendation curve, pods int, within float64) *node {
		n := shop(recommendation)
		for i := range pods {
			p := newPod("surge", fmt.Sprintf("web-%02d", i), policy.Burstable, leak(10*mib, 20*mib, 80*mib))
			p.born = float64(i) * within / float64(pods)
			p.facts.StartedAt = epoch.Add(time.Duration(p.born * float64(time.Second)))
			p.facts.CreatedAt = p.facts.StartedAt
			n.pods = append(n.pods, p)
		}
		return n
	}
	add(scenario{
		name: "start surge: 60 pods of 80 MiB within 20 s", want: "no pod", seconds: 90,
		node: func() *node { return surge(flat(2*gib), 60, 20) }, check: nobody,
	})
	add(scenario{
		name: "start surge: 20 pods of 80 MiB within 30 s, beside a pod of 5.5 GiB whose memory would end it", want: "no pod", seconds: 90,
		node: func() *node { return surge(flat(5.5*gib), 20, 30) }, check: nobody,
	})
	// starts puts seven pods on a node with 4 GiB to its threshold, one every 1.3 s, each up to most within so many seconds.
	starts := func(recommendation curve, most, within float64) *node {
		n := shop(recommendation)
		n.system = flat(3.1 * gib)
		for i := range 7 {
			p := newPod("starts", fmt.Sprintf("web-%d", i), policy.Burstable, leak(10*mib, most*mib/within, most*mib))
			p.facts.Request = 100 * mib
			p.born = 1.3 * float64(i)
			p.facts.StartedAt = epoch.Add(time.Duration(p.born * float64(time.Second)))
			p.facts.CreatedAt = p.facts.StartedAt
			n.pods = append(n.pods, p)
		}
		return n
	}
	for _, c := range []struct{ most, within float64 }{{400, 1.2}, {400, 5}, {400, 10}} {
		add(scenario{
			name: fmt.Sprintf("seven pods start one after the other, each takes %.0f MiB within %.1f s", c.most, c.within), want: "no pod", seconds: 90,
			node: func() *node { return starts(flat(2*gib), c.most, c.within) }, check: nobody,
		})
	}
	add(scenario{
		name: "leak of 50 MiB/s while seven pods start, each takes 300 MiB within 1.2 s", want: "the leaking pod goes, alone", seconds: 90,
		node: func() *node { return starts(leak(2*gib, 50*mib, 0), 300, 1.2) }, check: goes(culprit),
	})
	for _, rate := range []float64{50, 200, 800} {
		add(scenario{
			name: fmt.Sprintf("a pod leaks %.0f MiB/s from its start on", rate), want: "it goes, alone", seconds: 4000/rate + 60,
			node: func() *node {
				n := shop(flat(2 * gib))
				n.system = flat(4 * gib)
				p := newPod("shop", "fresh", policy.Burstable, leak(10*mib, rate*mib, 0))
				p.born, p.facts.StartedAt, p.facts.CreatedAt = 0, epoch, epoch
				n.pods = append(n.pods, p)
				return n
			}, check: goes("shop/fresh"),
		})
	}
	add(scenario{
		name: "four old pods take 300 MiB each within a second, one after the other, and stop", want: "no pod", seconds: 60,
		node: func() *node {
			n := shop(flat(2 * gib))
			n.system = flat(4 * gib)
			for i, p := range n.pods[3:] {
				p.anon = func(t float64) float64 { return 700*mib + min(max(t-float64(i), 0), 1)*300*mib }
			}
			return n
		}, check: nobody,
	})
	add(scenario{
		name: "the node idles at 94 % and nothing grows", want: "no pod", seconds: 120,
		node: func() *node {
			n := shop(flat(2 * gib))
			n.system = flat(6.1 * gib)
			return n
		}, check: nobody,
	})
	add(scenario{
		name: "leak of 30 MiB/s with 2 GiB of swap, which fills first", want: "the leaking pod goes, alone", seconds: 400,
		node: func() *node {
			n := shop(leak(2*gib, 30*mib, 0))
			n.swap = 2 * gib
			return n
		}, check: goes(culprit),
	})
	for _, step := range []time.Duration{-time.Hour, time.Hour} {
		add(scenario{
			name: fmt.Sprintf("leak of 100 MiB/s, the wall clock is set by %s at 15 s", step), want: "the leaking pod goes, alone", seconds: 100,
			node: func() *node { return shop(leak(2*gib, 100*mib, 0)) }, check: goes(culprit),
			clock: func(t float64) time.Duration {
				if t < 15 {
					return 0
				}
				return step
			},
		})
	}
	add(scenario{
		name: "leak of 100 MiB/s, no reading succeeds from 20 s to 25 s", want: "the leaking pod goes, alone, and not while nothing can be read", seconds: 100,
		node:  func() *node { return shop(leak(2*gib, 100*mib, 0)) },
		blind: func(t float64) bool { return t >= 20 && t < 25 },
		check: func(r *result) string {
			for _, e := range r.evicted {
				if e.at > 21 && e.at < 25 {
					return "evicted without a reading"
				}
			}
			return goes(culprit)(r)
		},
	})
	add(scenario{
		name: "the leaking pod's cgroup cannot be read, 60 MiB/s", want: "no pod: no innocent pays for what is not seen", seconds: 90,
		node: func() *node {
			n := shop(leak(2*gib, 60*mib, 0))
			n.pods[2].blind = true
			return n
		}, check: nobody,
	})
	add(scenario{
		name: "leak of 100 MiB/s on a kernel without PSI", want: "the leaking pod goes, alone", seconds: 100,
		node: func() *node {
			n := shop(leak(2*gib, 100*mib, 0))
			n.stall = nil
			return n
		}, check: goes(culprit),
	})
	add(scenario{
		name: "the leaking pod is in a protected namespace", want: "no pod, and the reason names it", seconds: 100,
		node: func() *node {
			n := shop(leak(2*gib, 100*mib, 0))
			n.pods[2].facts.Namespace = "kube-system"
			return n
		}, check: func(r *result) string {
			if why := nobody(r); why != "" {
				return why
			}
			if !strings.Contains(r.last, "kube-system/recommendation grows fastest") {
				return "the reason does not name it: " + r.last
			}
			return ""
		},
	})
	add(scenario{
		name: "leak of 60 MiB/s that comes back to this node and leaks again", want: "the leaking pod goes, its replacement too when it leaks as far, no other pod", seconds: 420,
		node: func() *node { return shop(leak(2*gib, 60*mib, 0)) },
		back: func(n *node, x *pod, t float64) {
			again := *x
			again.facts.UID += "'"
			again.born = t + 2
			again.gone, again.asked = math.Inf(1), math.Inf(1)
			again.facts.CreatedAt = epoch.Add(time.Duration((t + 1) * float64(time.Second)))
			again.facts.StartedAt = again.facts.CreatedAt
			n.pods = append(n.pods, &again)
		},
		check: func(r *result) string {
			if len(r.evicted) < 2 || len(r.evicted) > 4 || len(r.kubelet) > 0 {
				return "want two to four evictions and none by the kubelet"
			}
			for _, name := range r.names() {
				if name != culprit {
					return name + " is innocent"
				}
			}
			return ""
		},
	})
	return append(all, safety()...)
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}
