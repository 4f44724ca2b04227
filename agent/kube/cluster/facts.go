package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"spillway/agent/policy"
	"spillway/agent/status"
)

const (
	askFirst = 5  // so many first candidates are asked for
	askMost  = 15 // so many with those that are known to be blocked
	// learnTimeout bounds all questions of one look: the goroutine has other things to follow.
	learnTimeout = 5 * time.Second
	// learnAtOnce is how many of them are on their way at a time: an API server in trouble gets no more.
	learnAtOnce = 4
	// factsFresh is how long an answer counts beside the 120 s that a list is kept: a little more than one look to the next.
	factsFresh = 30 * time.Second
)

// Wanted are the first candidates, and the pods that are blocked or held by what the cluster says, or until it says something:
// that may change, and they leave their places to the next. Pods that are spared for a moment only are the candidates of the next.
func Wanted(ranking []policy.Candidate, usual func(*policy.Pod) uint64) []Wish {
	var want []Wish
	open := 0
	for i := range ranking {
		c := &ranking[i]
		if c.Pod.Owner.Kind == "" || c.Pod.Owner.UID == "" || c.Protection.Name != "" && !c.Protection.OfCluster() && !c.Protection.Passing() {
			continue
		}
		if c.Refused == "" && c.Protection.Name == "" {
			if open == askFirst {
				continue
			}
			open++
		}
		if want = append(want, Wish{c.Pod, usual(c.Pod)}); len(want) == askMost {
			break
		}
	}
	return want
}

// Workloads is what the cluster said about the owners of pods, by UID.
type Workloads map[string]workload

type workload struct {
	at time.Time
	policy.Workload
}

// Of returns what is known of an owner and young enough: the number of replicas, or of retries that are left, changes.
func (w Workloads) Of(uid string, now time.Time) policy.Workload {
	if got := w[uid]; now.Sub(got.at) <= factsFresh {
		return got.Workload
	}
	return policy.Workload{}
}

// Facts is what the cluster said about evicting pods, by UID.
type Facts map[string]fact

// fact is what the cluster said about evicting one pod. Its parts are asked for apart, and grow old apart.
type fact struct {
	cluster *policy.Cluster
	at      [allParts]time.Time // of the answers
}

// The parts of a fact.
const (
	budgetPart = iota
	scalerPart
	roomPart
	allParts
)

// factPart is one of the questions about a pod.
type factPart struct {
	name  string              // of the source
	group func(w Wish) string // pods of one group share an answer, which the client keeps
	known func(f *policy.Cluster) bool
	take  func(to, from *policy.Cluster)
	ask   func(ctx context.Context, c *Reader, w Wish, into *policy.Cluster) error
}

var factParts = [allParts]factPart{
	budgetPart: {
		name: "budgets", group: func(w Wish) string { return w.Pod.Namespace },
		known: func(f *policy.Cluster) bool { return f.Budget.Known },
		take:  func(to, from *policy.Cluster) { to.Budget = from.Budget },
		ask: func(ctx context.Context, c *Reader, w Wish, into *policy.Cluster) (err error) {
			into.Budget, err = c.client.Budget(ctx, w.Pod)
			return err
		},
	},
	scalerPart: {
		name: "scalers", group: func(w Wish) string { return w.Pod.Namespace },
		known: func(f *policy.Cluster) bool { return f.Scaler.Known },
		take:  func(to, from *policy.Cluster) { to.Scaler = from.Scaler },
		ask: func(ctx context.Context, c *Reader, w Wish, into *policy.Cluster) (err error) {
			into.Scaler, err = c.client.Scaler(ctx, w.Pod)
			return err
		},
	},
	roomPart: {
		name: "room", group: func(Wish) string { return "" },
		known: func(f *policy.Cluster) bool { return f.Room.Known },
		take:  func(to, from *policy.Cluster) { to.Room = from.Room },
		ask: func(ctx context.Context, c *Reader, w Wish, into *policy.Cluster) (err error) {
			into.Room, err = c.client.Room(ctx, w.Pod, w.Use, c.settings.Load().Excluded)
			return err
		},
	},
}

// unknownFact has every part unknown, for a reason.
func unknownFact(why string) policy.Cluster {
	return policy.Cluster{Budget: policy.Headroom{Why: why}, Scaler: policy.Scaler{Why: why}, Room: policy.Room{Why: why}}
}

// Of returns what is known of a pod and young enough, nil when nothing is.
func (f Facts) Of(uid string, now time.Time) *policy.Cluster {
	got, ok := f[uid]
	old := 0
	for _, at := range got.at {
		if now.Sub(at) > factsFresh {
			old++
		}
	}
	switch {
	case !ok || old == len(got.at):
		return nil
	case old == 0:
		return got.cluster
	}
	out, unknown := *got.cluster, unknownFact(fmt.Sprintf("there was no answer for %.0f s", factsFresh.Seconds()))
	for i, at := range got.at {
		if now.Sub(at) > factsFresh {
			factParts[i].take(&out, &unknown)
		}
	}
	return &out
}

// learn asks for budgets, autoscalers and room of the pods, a few at a time, and publishes the answers. A question without an
// answer leaves the answer before, while that is young: an API server in trouble makes nothing unknown at once. Other pods'
// are kept likewise: a pod that was found blocked leaves the first places to others, and must not be forgotten at once.
func (c *Reader) learn(ctx context.Context, want []Wish) {
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	old, next := *c.facts.Load(), make(Facts, len(want))
	found := make([]fact, len(want))
	for i := range found {
		found[i].cluster = &policy.Cluster{}
	}
	var mu sync.Mutex // guards failed
	var failed [allParts]error
	var asking sync.WaitGroup
	slots := make(chan struct{}, learnAtOnce)
	for _, t := range factTasks(want) {
		slots <- struct{}{} // those before end with ctx
		asking.Go(func() {
			defer func() { <-slots }()
			for _, i := range t.pods {
				err := c.learnPart(ctx, t.part, want[i], old, &found[i])
				if err != nil {
					mu.Lock()
					failed[t.part] = err
					mu.Unlock()
				}
			}
		})
	}
	asking.Wait()
	for i, w := range want {
		next[w.Pod.UID] = found[i]
	}
	now := time.Now()
	for uid, f := range old {
		if _, ok := next[uid]; !ok && old.Of(uid, now) != nil {
			next[uid] = f
		}
	}
	c.facts.Store(&next)
	for i := range factParts {
		c.heard(ctx, factParts[i].name, failed[i], len(want))
	}
}

// factTask is one part for the pods of a group, by index. They are asked for one after the other: the first fetches the answer.
type factTask struct {
	part int
	pods []int
}

// factTasks orders the questions by the first pod that each is about.
func factTasks(want []Wish) []factTask {
	type key struct {
		part  int
		group string
	}
	var out []factTask
	at := map[key]int{}
	for i, w := range want {
		for part := range factParts {
			k := key{part, factParts[part].group(w)}
			n, ok := at[k]
			if !ok {
				n = len(out)
				at[k], out = n, append(out, factTask{part: part})
			}
			out[n].pods = append(out[n].pods, i)
		}
	}
	return out
}

// learnPart asks one question about a pod. Where it has no answer, the one before is kept while it is known and young.
func (c *Reader) learnPart(ctx context.Context, part int, w Wish, old Facts, into *fact) error {
	p := &factParts[part]
	err := ctx.Err()
	if err == nil {
		err = p.ask(ctx, c, w, into.cluster)
	} else {
		unknown := unknownFact(fmt.Sprintf("there was no answer within %.0f s", learnTimeout.Seconds()))
		p.take(into.cluster, &unknown)
	}
	into.at[part] = time.Now()
	if p.known(into.cluster) || err == nil && ctx.Err() == nil {
		return err
	}
	if before, ok := old[w.Pod.UID]; ok && p.known(before.cluster) && time.Since(before.at[part]) <= factsFresh {
		p.take(into.cluster, before.cluster)
		into.at[part] = before.at[part]
	}
	return err
}

// heard names the state of a question that was asked for so many pods: sources log its changes only.
func (c *Reader) heard(ctx context.Context, name string, err error, pods int) {
	switch {
	case context.Cause(ctx) == context.Canceled || pods == 0:
	case err != nil:
		c.source(name, status.Degraded, err.Error())
	default:
		c.source(name, status.OK, fmt.Sprintf("answered for %d pods", pods))
	}
}
