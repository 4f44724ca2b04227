package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// replicas are pods of one Deployment.
func replicas(name string, count int, request float64, anon func(i int) curve) []*pod {
	var out []*pod
	for i := range count {
		p := newPod("shop", fmt.Sprintf("%s-%d", name, i), policy.Burstable, anon(i))
		p.facts.Owner = policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name, UID: "rs-" + name}
		p.facts.Request = uint64(request)
		p.workload.Replicas = int32(count)
		out = append(out, p)
	}
	return out
}

func alike(c curve) func(int) curve { return func(int) curve { return c } }

// only expects evictions of these pods alone, by anybody, and at least so many by Spillway.
func only(prefix string, least int) func(*result) string {
	return func(r *result) string {
		for _, name := range slices.Concat(r.names(), r.kubelet) {
			if !strings.HasPrefix(name, prefix) {
				return name + " is innocent"
			}
		}
		switch {
		case len(r.evicted) < least:
			return fmt.Sprintf("%d evictions, want at least %d", len(r.evicted), least)
		case len(r.kubelet) > 0:
			return "the kubelet had to act"
		}
		return ""
	}
}

// standsBy expects no eviction before critical and one at most then, and that the state says so.
func standsBy(r *result) string {
	for i := range r.evicted {
		if r.levels[i] < pressure.Critical {
			return r.evicted[i].pod + " is innocent and was evicted before critical"
		}
	}
	switch {
	case len(r.evicted) > 1:
		return fmt.Sprintf("%d innocents were evicted", len(r.evicted))
	case r.states[policy.StateStandBy] == 0:
		return "no decision stands by"
	}
	return ""
}

// returns puts the replacement of an evicted pod on the same node after so many seconds.
func returns(after float64) func(n *node, x *pod, t float64) {
	return func(n *node, x *pod, t float64) {
		again := *x
		again.facts.UID += "'"
		again.born = t + after
		again.gone, again.asked = math.Inf(1), math.Inf(1)
		again.facts.CreatedAt = epoch.Add(time.Duration((t + after/2) * float64(time.Second)))
		again.facts.StartedAt = again.facts.CreatedAt
		n.pods = append(n.pods, &again)
	}
}

func graced(n *node, seconds int) *node {
	for _, p := range n.pods {
		p.facts.Grace = time.Duration(seconds) * time.Second
	}
	return n
}

// sawtooth is a heap that is collected every period seconds.
func sawtooth(base, height, period float64) curve {
	return func(t float64) float64 {
		return base + height*math.Mod(t+10*period, period)/period
	}
}

// inSteps grows by height at once, every period seconds, over 0.2 s.
func inSteps(base, height, period float64) curve {
	return func(t float64) float64 {
		if t < 0 {
			return base
		}
		return base + height*(math.Floor(t/period)+min(1, math.Mod(t, period)/0.2))
	}
}

// safety are loads on which an earlier Spillway evicted the wrong pod, or none, with variants of each.
func safety() []*scenario {
	var all []*scenario
	add := func(s scenario) { all = append(all, &s) }

	for _, c := range []struct {
		count, rate float64
		exit        time.Duration
		least       int
	}{{4, 10, 0, 1}, {4, 5, 0, 1}, {4, 20, 0, 1}, {4, 100, 10 * time.Second, 3}, {6, 30, 0, 2}, {3, 15, 0, 1}, {8, 8, 5 * time.Second, 2}, {10, 40, 0, 4}} {
		add(scenario{
			name: fmt.Sprintf("%.0f replicas of one Deployment leak %.0f MiB/s each, exit after %.1f s", c.count, c.rate, max(c.exit, 500*time.Millisecond).Seconds()),
			want: "leaking replicas alone", seconds: min(600, 7000/(c.count*c.rate)+200),
			node: func() *node {
				n := shop(flat(2 * gib))
				n.pods = append(n.pods, replicas("api", int(c.count), 256*mib, alike(leak(300*mib, c.rate*mib, 0)))...)
				for _, p := range n.pods[7:] {
					p.exit = max(c.exit, p.exit)
				}
				return n
			}, check: only("shop/api-", c.least),
		})
	}

	for _, c := range []struct {
		count int
		rate  float64
		what  string
	}{{3, 30, "an HPA at its minimum"}, {3, 8, "an HPA at its minimum"}, {2, 30, "an HPA at its minimum"}, {5, 40, "an HPA at its minimum"}, {3, 30, "no room elsewhere"}, {3, 8, "no room elsewhere"}, {2, 60, "an HPA that scales"}} {
		cluster := &policy.Cluster{Budget: policy.Headroom{Known: true}, Scaler: policy.Scaler{Known: true}, Room: policy.Room{Known: true, Fits: 2, Wanted: 2}}
		switch c.what {
		case "an HPA at its minimum":
			cluster.Scaler = policy.Scaler{Known: true, Namespace: "shop", Name: "api", Min: int32(c.count), Max: 10, Current: int32(c.count), Desired: int32(c.count)}
		case "an HPA that scales":
			cluster.Scaler = policy.Scaler{Known: true, Namespace: "shop", Name: "api", Min: 1, Max: 10, Current: int32(c.count), Desired: int32(c.count) + 1}
		default:
			cluster.Room.Fits = 0
		}
		add(scenario{
			name: fmt.Sprintf("%d replicas behind %s leak %.0f MiB/s each", c.count, c.what, c.rate), want: "leaking replicas alone", seconds: 7000/(float64(c.count)*c.rate) + 120,
			node: func() *node {
				n := shop(flat(2 * gib))
				for _, p := range replicas("api", c.count, 256*mib, alike(leak(300*mib, c.rate*mib, 0))) {
					p.cluster = cluster
					n.pods = append(n.pods, p)
				}
				return n
			}, check: only("shop/api-", 1),
		})
	}

	for _, c := range []struct {
		rate  float64
		grace int
		what  string
	}{
		{3, 30, "DaemonSet's pod"}, {5, 30, "DaemonSet's pod"}, {10, 30, "DaemonSet's pod"}, {20, 30, "DaemonSet's pod"}, {20, 5, "DaemonSet's pod"}, {50, 1, "DaemonSet's pod"}, {100, 1, "DaemonSet's pod"},
		{20, 30, "bare pod"}, {35, 5, "pod annotated never"}, {15, 10, "pod of kube-system"}, {60, 1, "TaskRun's pod"},
	} {
		add(scenario{
			name: fmt.Sprintf("a %s leaks %.0f MiB/s, grace of all %d s", c.what, c.rate, c.grace), want: "no neighbour pays; at critical one at most, if the kubelet would take an innocent", seconds: min(700, 7000/c.rate+30),
			node: func() *node {
				n := shop(flat(2 * gib))
				if c.rate < 10 {
					n.system = flat(5 * gib)
				}
				p := newPod("shop", "log-agent", policy.Burstable, leak(300*mib, c.rate*mib, 0))
				switch c.what {
				case "DaemonSet's pod":
					p.facts.Owner.Kind = "DaemonSet"
				case "bare pod":
					p.facts.Owner = policy.Owner{}
				case "pod annotated never":
					p.facts.Annotations = map[string]string{policy.AnnotationEvict: "never"}
				case "pod of kube-system":
					p.facts.Namespace = "kube-system"
				case "TaskRun's pod":
					p.facts.Owner = policy.Owner{APIVersion: "tekton.dev/v1", Kind: "TaskRun", Name: "build", UID: "build"}
				}
				n.pods = append(n.pods, p)
				return graced(n, c.grace)
			}, check: standsBy,
		})
	}

	for _, c := range []struct{ height, period, system float64 }{{300, 30, 6.7}, {600, 20, 6.2}, {250, 10, 6.6}, {400, 60, 6.6}, {150, 5, 6.4}, {500, 45, 6.5}} {
		add(scenario{
			name: fmt.Sprintf("heap of `payment` rises %.0f MiB in %.0f s and is collected, on a node with little to spare", c.height, c.period), want: "no pod", seconds: 6 * c.period, back: returns(2),
			node: func() *node {
				n := shop(flat(2 * gib))
				n.pods[0].anon = sawtooth(2*gib-c.height*mib, c.height*mib, c.period)
				n.system = flat(c.system * gib)
				return n
			}, check: nobody,
		})
	}

	for _, c := range []struct{ capacity, working, available float64 }{{1024, 999.9, 9}, {2048, 2001.9, 16}, {1, 0.726, 0.082}, {2, 1.617, 0.09}, {512, 500, 3}} {
		add(scenario{
			name: fmt.Sprintf("node of %.0f GiB at rest with %.2f GiB MemAvailable", c.capacity, c.available), want: "no pod", seconds: 60, back: returns(1),
			node: func() *node {
				n := shop(flat(0))
				n.capacity = c.capacity * gib
				n.pods = nil
				for i := range 9 {
					n.pods = append(n.pods, newPod("app", fmt.Sprintf("p-%02d", i), policy.Burstable, flat((c.working-0.2)*gib/9)))
				}
				n.system = flat(0.2 * gib)
				n.kernel = flat((c.capacity-c.working-c.available)*gib - 400*mib)
				return n
			}, check: nobody,
		})
	}

	for _, c := range []struct {
		what    string
		restart float64
		system  float64
		cache   curve
		host    curve
	}{
		{"page cache brings the node 50 MiB under and stays, the agent restarts then", 33.5, 3.1, leak(0, 150*mib, 4.63*gib), nil},
		{"the same, the agent restarts while it grows", 25, 3.1, leak(0, 150*mib, 4.63*gib), nil},
		{"page cache fills a node that was packed to 91 % from the start", 0, 6.38, leak(0, 50*mib, 1.35*gib), nil},
		{"the host takes what is left and keeps it, the agent restarts then", 45, 1, nil, leak(0, 200*mib, 6.79*gib)},
		{"a pod took what was left and stands still, the agent restarts then", 45, 1, nil, nil},
	} {
		add(scenario{
			name: c.what, want: "no pod: what stands there is no pod's growth", seconds: 120, restart: c.restart,
			node: func() *node {
				n := shop(flat(2 * gib))
				n.system = flat(c.system * gib)
				switch {
				case c.cache != nil:
					n.pods[2].cache = c.cache
				case c.host != nil:
					n.system = func(t float64) float64 { return c.system*gib + c.host(t) }
				default: // a pod that may not be evicted, so that it is still there
					n.pods[2].anon = leak(2*gib, 200*mib, 8.79*gib)
					n.pods[2].facts.Owner.Kind = "DaemonSet"
				}
				return n
			}, check: func(r *result) string {
				for _, e := range r.evicted {
					if c.restart == 0 || e.at >= c.restart {
						return e.pod + " was evicted"
					}
				}
				return ""
			},
		})
	}

	for _, c := range []struct {
		code int
		verb policy.Verb
		says string
	}{
		{500, policy.Backoff, `Internal error occurred: failed calling webhook "check.example.com": connection refused`}, {429, policy.Backoff, "the guest cannot be migrated now"},
		{403, policy.Blocked, `admission webhook "check.example.com" denied the request`}, {503, policy.Backoff, "not now"}, {0, policy.Unknown, "context deadline exceeded"},
	} {
		add(scenario{
			name: fmt.Sprintf("two pods leak 60 and 40 MiB/s, and the eviction of the first is answered %d %s", c.code, c.verb), want: "the second goes, no innocent does", seconds: 180,
			node: func() *node {
				n := shop(leak(2*gib, 60*mib, 0))
				n.pods[1].anon = leak(2*gib, 40*mib, 0)
				return n
			}, answer: func(pod string) policy.Answer {
				if pod == culprit {
					return policy.Answer{Verb: c.verb, Code: c.code, Message: c.says}
				}
				return policy.Answer{Verb: policy.Accepted, Code: 201}
			}, check: func(r *result) string {
				if got := strings.Join(r.names(), " "); got != "shop/cart" || r.evicted[0].margin < 256*mib {
					return fmt.Sprintf("evicted [%s], want cart with 256 MiB left", got)
				}
				return ""
			},
		})
	}

	for _, c := range []struct {
		takes, within float64
	}{{3.5, 2}, {4, 6}, {3.2, 1}} {
		add(scenario{
			name: fmt.Sprintf("a pod takes %.1f GiB within %.0f s of each start, more than is left, and its replacement comes back", c.takes, c.within), want: "three evictions of it at most within five minutes, no innocent", seconds: 300, back: returns(4),
			node: func() *node {
				n := shop(flat(2 * gib))
				n.system = flat(4 * gib)
				p := newPod("shop", "fresh", policy.Burstable, leak(10*mib, c.takes*gib/c.within, c.takes*gib))
				p.born, p.facts.StartedAt, p.facts.CreatedAt = 0, epoch, epoch
				n.pods = append(n.pods, p)
				return n
			}, check: func(r *result) string {
				for _, name := range r.names() {
					if name != "shop/fresh" {
						return name + " is innocent"
					}
				}
				if len(r.evicted) > 5 {
					return fmt.Sprintf("%d evictions of it", len(r.evicted))
				}
				return ""
			},
		})
	}

	for _, c := range []struct{ height, period float64 }{{200, 10}, {300, 15}, {100, 5}, {400, 18}} {
		add(scenario{
			name: fmt.Sprintf("a pod grows by %.0f MiB at once every %.0f s", c.height, c.period), want: "it goes, alone", seconds: 8000/(c.height/c.period) + 30,
			node: func() *node { return shop(inSteps(2*gib, c.height*mib, c.period)) }, check: goes(culprit),
		})
	}

	for _, c := range []struct {
		what          string
		rate, slowFor float64
	}{{"page cache", 400, 120}, {"slab", 400, 120}, {"slab", 200, 200}, {"another pod", 800, 90}} {
		add(scenario{
			name: fmt.Sprintf("%s grows 6 MiB/s for %.0f s, then a pod leaks %.0f MiB/s", c.what, c.slowFor, c.rate), want: "the leaking pod goes, alone, within 4 s", seconds: c.slowFor + 60,
			node: func() *node {
				n := shop(func(t float64) float64 { return 2*gib + max(0, t-c.slowFor)*c.rate*mib })
				n.system = flat(2.5 * gib)
				slow := leak(0, 6*mib, 0)
				switch c.what {
				case "page cache":
					n.pods[0].cache = slow
				case "slab":
					n.kernel = slow
				default:
					n.pods[0].anon = func(t float64) float64 { return 2*gib + slow(t) }
					n.pods[0].facts.Request = 4 * gib
				}
				return n
			}, check: func(r *result) string {
				if why := goes(culprit)(r); why != "" {
					return why
				}
				if late := r.evicted[0].at - c.slowFor; late > 1.5+2*1024/c.rate {
					return fmt.Sprintf("evicted %.1f s after its leak began", late)
				}
				return ""
			},
		})
	}

	for _, rate := range []float64{120, 180, 300, 450} {
		add(scenario{
			name: fmt.Sprintf("two Deployments leak %.0f MiB/s each with 2 GiB of margin", rate), want: "both go, no innocent, the kubelet has nothing to do", seconds: 60,
			node: func() *node {
				n := shop(flat(2 * gib))
				n.system = flat(4.1 * gib)
				n.pods[1].anon, n.pods[2].anon = flat(2*gib), flat(2*gib)
				for _, name := range []string{"one", "two"} {
					n.pods = append(n.pods, newPod("leaks", name, policy.Burstable, leak(200*mib, rate*mib, 0)))
				}
				return n
			}, check: only("leaks/", 2),
		})
	}

	for _, c := range []struct {
		leaks int
		rate  float64
	}{{3, 30}, {4, 60}, {6, 20}} {
		add(scenario{
			name: fmt.Sprintf("%d of fourteen pods that started 17 s ago leak %.0f MiB/s each", c.leaks, c.rate), want: "leaking pods alone, at critical while they are young", seconds: 3000/(float64(c.leaks)*c.rate) + 60,
			node: func() *node {
				n := shop(flat(2 * gib))
				n.system = flat(4 * gib)
				for i := range 14 {
					p := newPod("fresh", fmt.Sprintf("calm-%02d", i), policy.Burstable, flat(10*mib))
					if i < c.leaks {
						p = newPod("fresh", fmt.Sprintf("leak-%02d", i), policy.Burstable, leak(50*mib, c.rate*mib, 0))
					}
					p.facts.StartedAt = epoch.Add(-17 * time.Second)
					p.facts.CreatedAt = p.facts.StartedAt
					n.pods = append(n.pods, p)
				}
				return n
			}, check: only("fresh/leak-", 2),
		})
	}

	add(scenario{
		name: "250 pods grow 0.2 MiB/s each", want: "growing pods, as few as end it", seconds: 300,
		node: func() *node {
			n := shop(flat(2 * gib))
			for i := range 250 {
				n.pods = append(n.pods, newPod("many", fmt.Sprintf("p-%03d", i), policy.Burstable, leak(12*mib, 0.2*mib, 0)))
			}
			return n
		}, check: func(r *result) string {
			for _, name := range r.names() {
				if !strings.HasPrefix(name, "many/") {
					return name + " is innocent"
				}
			}
			return ""
		},
	})
	add(scenario{
		name: "a pod fills its request of 1.5 GiB at 100 MiB/s, with 2 GiB of margin", want: "no pod", seconds: 60,
		node: func() *node {
			n := shop(flat(2 * gib))
			n.system = flat(4.1 * gib)
			p := newPod("shop", "filler", policy.Guaranteed, leak(50*mib, 100*mib, 1.45*gib))
			p.facts.Request, p.facts.Limit, p.facts.LimitSet = 1.5*gib, 1.5*gib, true
			n.pods = append(n.pods, p)
			return n
		}, check: nobody,
	})
	add(scenario{
		name: "a pod whose request is larger than the node leaks 60 MiB/s", want: "it goes, alone", seconds: 200,
		node: func() *node {
			n := shop(leak(2*gib, 60*mib, 0))
			n.pods[2].facts.Request = 1 << 62
			return n
		}, check: goes(culprit),
	})
	return all
}
