//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/status"
	"spillway/test/faults"
	"spillway/test/scenario"
)

// The cases of this file are about whose pod is evicted: only a pod that causes the shortage. Where that pod may not be
// evicted, no neighbour is evicted for it. TestCauseKubeletAlone runs the same loads without Spillway.

// standBy is the state of a decision that evicts no pod because the cause may not be evicted, or is no pod.
const standBy = "stand-by"

// coveredHold is what covered hold together, with some room.
const coveredHold = 3 << 30

// covered are neighbours whose requests cover what they hold: the kubelet takes any pod above its request before them.
func covered(grace int) []scenario.Workload {
	return []scenario.Workload{
		{Name: "payment", Grace: grace, Args: []string{"hold", "1500Mi"}, Requests: "{cpu: 10m, memory: 1536Mi}", Says: "(1500.0 MiB)"},
		{Name: "cart", Grace: grace, Args: []string{"hold", "1200Mi"}, Requests: "{cpu: 10m, memory: 1229Mi}", Says: "(1200.0 MiB)"},
		{Name: "search", Grace: grace, Args: []string{"hold", "20Mi"}, Replicas: 4},
	}
}

// leaker is a workload that waits for the start of the load and then grows from its hold to its limit; sizes in MiB.
func leaker(name string, rate, hold, limit int) scenario.Workload {
	return scenario.Workload{Name: name, Part: scenario.Culprit, Requests: "{cpu: 10m}", Args: []string{"leak", "--rate", mib(rate), "--hold", mib(hold), "--limit", mib(limit), "--wait-for", "$GO"}}
}

func mib(n int) string { return fmt.Sprintf("%dMi", n) }

// twoLeaks stop at 4 GiB each, so that the run without Spillway does not fill the machine.
func twoLeaks(rate int) scenario.Case {
	return scenario.Case{
		Name: fmt.Sprintf("two-leaks-%d", rate), Note: fmt.Sprintf("two pods leak %d MiB/s each", rate), Rate: int64(2*rate) << 20, Leave: 2,
		Workloads: append([]scenario.Workload{leaker("recommendation", rate, 200, 4096), leaker("second", rate, 200, 4096)}, scenario.Neighbours()...),
	}
}

// TestTwoLeaks: two pods of two Deployments leak fast. Both are evicted, in one round or in two: the eviction of the first holds
// the second for no cooldown.
func TestTwoLeaks(t *testing.T) {
	for _, l := range []struct {
		rate  int
		short bool
	}{{120, false}, {180, true}, {300, false}} {
		t.Run(fmt.Sprintf("%d MiB a second each", l.rate), func(t *testing.T) {
			if !l.short {
				long(t)
			}
			res := runCase(t, twoLeaks(l.rate), scenario.Enforce)
			unharmed(t, res)
			if got := slices.Sorted(slices.Values(res.API())); !slices.Equal(got, []string{"recommendation", "second"}) {
				t.Errorf("evicted through the API: %v, want recommendation and second", got)
			}
			checkRound(t, res.Status.Evictions.Outcomes)
			checkChoices(t, "")
			checkReplay(t, "recommendation")
		})
	}
}

// replicas are the pods of one Deployment that leak together beside payment and cart. The run ends when so many have left.
func replicas(n, rate, leave, limit int) scenario.Case {
	w := leaker("recommendation", rate, 200, limit)
	w.Replicas = n
	return scenario.Case{
		Name: fmt.Sprintf("replicas-%d-%d", n, rate), Note: fmt.Sprintf("%d replicas of one Deployment leak %d MiB/s each", n, rate), Rate: int64(n*rate) << 20,
		Leave: leave, Longest: 3 * time.Minute, Settle: 8 * time.Second, Room: coveredHold, Workloads: append([]scenario.Workload{w}, covered(0)...),
	}
}

// TestReplicasLeak: the replicas of one Deployment leak together. They are evicted one after the other; payment and cart,
// which are larger and do not grow, stay.
func TestReplicasLeak(t *testing.T) {
	for _, l := range []struct {
		n, rate, leave, limit int
		short                 bool
	}{{4, 12, 2, 1100, false}, {4, 20, 2, 1100, false}, {4, 100, 3, 2048, false}, {6, 30, 4, 2048, false}} {
		t.Run(fmt.Sprintf("%d at %d MiB a second", l.n, l.rate), func(t *testing.T) {
			if !l.short {
				long(t)
			}
			res := runCase(t, replicas(l.n, l.rate, l.leave, l.limit), scenario.Enforce)
			unharmed(t, res)
			if got := only(res.API(), "recommendation"); got < l.leave || got != len(res.API()) {
				t.Errorf("evicted through the API: %v, want at least %d replicas of recommendation and no other pod", res.API(), l.leave)
			}
			checkRound(t, res.Status.Evictions.Outcomes)
			checkChoices(t, "")
			checkReplay(t, "recommendation")
		})
	}
}

// twenty fill 800 MiB more than the margin when none of them is evicted.
func twenty() scenario.Case {
	w := leaker("small", 20, 10, 150)
	w.Replicas, w.Requests = 20, "{cpu: 1m}"
	return scenario.Case{Name: "replicas-20-20", Note: "20 replicas of one Deployment leak 20 MiB/s each, up to 150 MiB", Rate: 400 << 20, Quiet: 30 * time.Second,
		Room: coveredHold, Workloads: append([]scenario.Workload{w}, covered(0)...)}
}

// TestTwentyReplicas: twenty replicas of one Deployment leak fast. Only they are evicted, two at a time and at most ten
// within the hour. Evictions of so many may come too late for the threshold, which is logged: then the kubelet takes leakers too.
func TestTwentyReplicas(t *testing.T) {
	long(t)
	c := twenty()
	c.Installed = func(context.Context) error {
		time.Sleep(time.Minute) // pods of a start surge are spared for a minute
		return nil
	}
	res := runCase(t, c, scenario.Enforce)
	if got := res.Innocents(); len(got) != 0 || res.OOMKills != 0 || len(res.FalseAlarms()) != 0 {
		t.Errorf("innocents hit %v, %d OOM kills, false alarms %v, want none", got, res.OOMKills, res.FalseAlarms())
	}
	// Two of them leave most of the load: with fewer evictions it cannot have been answered.
	if n := len(res.API()); n < 2 || n > 10 {
		t.Errorf("%d pods evicted through the API, want at least 2, and at most the hourly cap of 10", n)
	}
	t.Logf("evicted through the API %d, by the kubelet %d, lowest margin %d MiB", len(res.API()), len(res.Kubelet()), res.Lowest>>20)
	checkRound(t, res.Status.Evictions.Outcomes)
	checkChoices(t, "")
	checkReplay(t, "small")
}

// behindScaler has an autoscaler that is at its minimum: all replicas leak.
func behindScaler(n, most, rate int) scenario.Case {
	w := leaker("recommendation", rate, 200, 3072)
	w.Replicas, w.Scaler = n, [2]int{n, most}
	return scenario.Case{
		Name: fmt.Sprintf("scaler-%d", n), Note: fmt.Sprintf("%d replicas behind an autoscaler at its minimum leak %d MiB/s each", n, rate), Rate: int64(n*rate) << 20,
		Leave: n, Workloads: append([]scenario.Workload{w}, scenario.Neighbours()...),
	}
}

// TestLeakBehindScaler: an autoscaler at its minimum holds no pod with a real part in the growth.
func TestLeakBehindScaler(t *testing.T) {
	long(t)
	for _, l := range []struct{ n, most, rate int }{{1, 3, 60}, {3, 5, 30}} {
		t.Run(fmt.Sprintf("%d of %d to %d", l.n, l.n, l.most), func(t *testing.T) {
			res := runCase(t, behindScaler(l.n, l.most, l.rate), scenario.Enforce)
			unharmed(t, res)
			if got := only(res.API(), "recommendation"); got != l.n || got != len(res.API()) {
				t.Errorf("evicted through the API: %v, want the %d replicas of recommendation", res.API(), l.n)
			}
			// The agent knew of the autoscaler when it decided.
			want := fmt.Sprintf("HPA recommendation: at its minimum %d of %d", l.n, l.most)
			if !slices.ContainsFunc(res.Status.Decisions, func(d status.Decision) bool {
				return d.State == "victim" && slices.ContainsFunc(d.Ranking, func(p status.Pod) bool {
					return slices.ContainsFunc(p.Cluster, func(line string) bool { return strings.HasPrefix(line, want) })
				})
			}) {
				t.Errorf("no decision for an eviction says %q", want)
			}
			checkChoices(t, "")
			checkReplay(t, "recommendation")
		})
	}
}

// protectedLeak is a leak in a pod that may not be evicted. It stops about 200 MiB before the kubelet's threshold.
type protectedLeak struct {
	name, note string
	by         string // part of the reason why the pod is protected
	shield     func(*scenario.Workload)
	rate       int // MiB/s
	grace      int // of all pods, seconds
}

const protectedGrowth = 1800 // MiB

func protectedLeaks() []protectedLeak {
	daemon := protectedLeak{name: "daemonset", note: "a DaemonSet's pod", by: "DaemonSet", rate: 25, grace: 30, shield: func(w *scenario.Workload) { w.Kind = scenario.DaemonSet }}
	never := protectedLeak{name: "never", note: "a pod with the annotation spillway/evict: never", by: "spillway/evict", rate: 25, grace: 30, shield: func(w *scenario.Workload) { w.Annotate = `{spillway/evict: "never"}` }}
	all := []protectedLeak{daemon, never}
	for _, p := range all[:2:2] { // short grace periods make an eviction of a neighbour look easy
		p.rate, p.grace = 100, 1
		all = append(all, p)
	}
	return all
}

func (p protectedLeak) load() scenario.Case {
	w := leaker("agent", p.rate, 200, 200+protectedGrowth)
	w.Part, w.Grace = scenario.Innocent, p.grace // it may not be evicted either
	p.shield(&w)
	return scenario.Case{
		Name: fmt.Sprintf("%s-%d", p.name, p.rate), Note: fmt.Sprintf("%s leaks %d MiB/s and stops at 2000 MiB, %d s grace", p.note, p.rate, p.grace), Rate: int64(p.rate) << 20,
		Quiet: time.Duration(protectedGrowth/p.rate)*time.Second + 15*time.Second, Room: coveredHold, Workloads: append([]scenario.Workload{w}, covered(p.grace)...),
	}
}

// TestCulpritStays: the pod that leaks may not be evicted. No other pod is evicted for it, and the decision says which pod it is
// and why it is protected.
func TestCulpritStays(t *testing.T) {
	long(t)
	for _, p := range protectedLeaks() {
		t.Run(fmt.Sprintf("%s at %d MiB a second", p.name, p.rate), func(t *testing.T) {
			c := p.load()
			res := runCase(t, c, scenario.Enforce)
			unharmed(t, res)
			noEvictions(t, res)
			grew(t, res, protectedGrowth)
			pod := "case-" + c.Name + "-spillway/agent-"
			decision(t, res.Status, standBy)
			if !slices.ContainsFunc(res.Status.Decisions, func(d status.Decision) bool { // when it has stopped, others say what is left
				return d.State == standBy && (d.Level == "evict" || d.Level == "critical") && strings.Contains(d.Reason, pod) && strings.Contains(d.Reason, p.by)
			}) {
				t.Errorf("no decision to stand by at level evict or critical names %s and %q: %+v", pod, p.by, res.Status.Decisions)
			}
			checkChoices(t, pod)
			checkReplay(t, "")
		})
	}
}

// withinRequest grows to just under what the pod requested.
func withinRequest(rate int) scenario.Case {
	w := scenario.Workload{Name: "batch", Args: []string{"leak", "--rate", mib(rate), "--limit", "1480Mi", "--wait-for", "$GO"}, Requests: "{cpu: 500m, memory: 1536Mi}", Limits: "{cpu: 500m, memory: 1536Mi}"}
	return scenario.Case{Name: fmt.Sprintf("guaranteed-%d", rate), Note: fmt.Sprintf("a Guaranteed pod fills its request of 1.5 GiB at %d MiB/s", rate), Rate: int64(rate) << 20, Quiet: 35 * time.Second,
		Workloads: append([]scenario.Workload{w}, scenario.Neighbours()...)}
}

// TestWithinRequest: a Guaranteed pod uses what it requested, fast, and there is room for it: no pod is evicted.
func TestWithinRequest(t *testing.T) {
	long(t)
	for _, rate := range []int{100, 400} {
		t.Run(fmt.Sprintf("%d MiB a second", rate), func(t *testing.T) {
			res := runCase(t, withinRequest(rate), scenario.Enforce)
			unharmed(t, res)
			noEvictions(t, res)
			grew(t, res, 1400)
		})
	}
}

// ownLimit dies at its own memory limit, again after every restart; sizes in MiB.
func ownLimit(rate, limit int) scenario.Case {
	w := scenario.Workload{Name: "crasher", Part: scenario.Culprit, Args: []string{"leak", "--rate", mib(rate), "--wait-for", "$GO"}, Requests: "{cpu: 10m, memory: 64Mi}", Limits: fmt.Sprintf("{memory: %dMi}", limit)}
	return scenario.Case{Name: fmt.Sprintf("own-limit-%d", limit), Note: fmt.Sprintf("a pod leaks %d MiB/s and is killed at its own limit of %d MiB, again and again", rate, limit), Rate: int64(rate) << 20, Quiet: 50 * time.Second,
		Workloads: append([]scenario.Workload{w}, scenario.Neighbours()...)}
}

// TestDiesAtItsOwnLimit: the kernel kills the container at its own limit each time, long before the node is short of memory: no
// pod is evicted.
func TestDiesAtItsOwnLimit(t *testing.T) {
	long(t)
	for _, l := range []struct{ rate, limit int }{{100, 300}, {400, 1200}} {
		t.Run(fmt.Sprintf("%d MiB a second to %d MiB", l.rate, l.limit), func(t *testing.T) {
			res := runCase(t, ownLimit(l.rate, l.limit), scenario.Enforce)
			noEvictions(t, res)
			diedAtLimit(t, res, l.limit)
			if got := res.Innocents(); len(got) != 0 || res.Lowest < 0 {
				t.Errorf("innocents hit %v, lowest margin %d MiB, want none and at least 0", got, res.Lowest>>20)
			}
		})
	}
}

// diedAtLimit checks that the case is a real one: the container filled its limit and died of it, more than once.
func diedAtLimit(t *testing.T, res *scenario.Result, limit int) {
	t.Helper()
	grew(t, res, limit*3/4)
	killed := 0
	for _, k := range res.Status.OOMKills {
		if k.Namespace == "case-"+res.Case.Name+"-spillway" && strings.HasPrefix(k.Pod, "crasher-") {
			killed++
		}
	}
	if res.OOMKills < 2 || killed < 2 {
		t.Errorf("%d OOM kills on the node, %d of crasher by the agent's account, want at least two", res.OOMKills, killed)
	}
}

// refusing leaks in two pods. The eviction of the second alone leaves room for what the first still fills.
func refusing(name string) scenario.Case {
	return scenario.Case{
		Name: "webhook-" + name, Note: "two pods leak 60 and 40 MiB/s, the first up to 1400 MiB; a webhook refuses its eviction (" + name + ")", Rate: 100 << 20,
		Workloads: append([]scenario.Workload{leaker("recommendation", 60, 200, 1400), leaker("second", 40, 200, 4096)}, scenario.Neighbours()...),
	}
}

// TestWebhookRefuses: a webhook refuses the eviction of the pod that leaks faster, with 429 or by an answer that never
// comes, of which the API server makes 500. That concerns this pod alone: the other one is evicted in time.
func TestWebhookRefuses(t *testing.T) {
	long(t)
	for _, h := range []struct {
		name string
		code int // of the webhook; 0: it closes the connection
	}{{"429", http.StatusTooManyRequests}, {"500", 0}} {
		t.Run("answer "+h.name, func(t *testing.T) {
			c := refusing(h.name)
			namespace := "case-" + c.Name + "-spillway"
			var asked, dry atomic.Int32 // by the agent, for the first pod
			hook := serveHook(t, faults.Admission(func(r faults.Review) (int, string) {
				if !strings.HasPrefix(r.Name, "recommendation-") {
					return http.StatusOK, ""
				}
				if r.User.Name == agentUser && r.DryRun {
					dry.Add(1)
				} else if r.User.Name == agentUser {
					asked.Add(1)
				}
				return h.code, "try later"
			}))
			c.Installed = func(ctx context.Context) error {
				if err := runner.Cluster.Apply(ctx, hook.Manifest("cause", hook.URL(), "kubernetes.io/metadata.name", namespace)); err != nil {
					return err
				}
				return awaitRefusal(ctx, namespace, "recommendation")
			}
			t.Cleanup(func() {
				runner.Cluster.Kubectl(context.Background(), "delete", "validatingwebhookconfiguration/cause", "--ignore-not-found")
			})
			res := runCase(t, c, scenario.Enforce)
			unharmed(t, res)
			if got := res.API(); !slices.Equal(got, []string{"second"}) {
				t.Errorf("evicted through the API: %v, want second alone", got)
			}
			t.Logf("the webhook refused recommendation to the agent %d times, %d more as a dry run", asked.Load(), dry.Load())
			if asked.Load()+dry.Load() == 0 {
				t.Error("the agent never asked for the eviction of recommendation: the webhook refused nothing, and the case proves nothing")
			}
			checkChoices(t, "")
			checkReplay(t, "second")
		})
	}
}

// serveHook serves a webhook where the API server reaches it, until the test ends.
func serveHook(t *testing.T, handler http.Handler) *faults.Hook {
	t.Helper()
	listener, err := runner.Cluster.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hook, err := faults.ServeHook(listener, handler)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hook.Close(); err != nil {
			t.Error(err)
		}
	})
	return hook
}

// awaitRefusal waits until the API server refuses the eviction of a workload's pod: a webhook takes effect a moment after its
// configuration is written.
func awaitRefusal(ctx context.Context, namespace, app string) error {
	client := runner.Cluster.Client()
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return err
	}
	if len(pods.Items) == 0 {
		return fmt.Errorf("namespace %s: no pod of %s", namespace, app)
	}
	try := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pods.Items[0].Name, Namespace: namespace}, DeleteOptions: &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}}
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(100 * time.Millisecond) {
		err := client.PolicyV1().Evictions(namespace).Evict(ctx, try)
		if err != nil && strings.Contains(err.Error(), "webhook") {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("the webhook refuses no eviction of %s within 10 s", try.Name)
}

// TestCauseKubeletAlone is the other side of the cases above. It asserts only that each case is a real one: either the kubelet
// evicts pods, or, where the load stops before its threshold, that the load was there and no pod is evicted: any eviction by
// Spillway would be one too many.
func TestCauseKubeletAlone(t *testing.T) {
	long(t)
	type twin struct {
		load  scenario.Case
		grows int // MiB, where the kubelet alone evicts no pod; 0: it evicts some
	}
	twins := []twin{
		{twoLeaks(120), 0}, {twoLeaks(180), 0}, {twoLeaks(300), 0},
		{replicas(4, 12, 2, 1100), 0}, {twenty(), 0},
		{behindScaler(1, 3, 60), 0}, {behindScaler(3, 5, 30), 0},
		{withinRequest(100), 1400}, {ownLimit(100, 300), 225}, {refusing("none"), 0},
	}
	for _, p := range protectedLeaks()[:2] {
		twins = append(twins, twin{p.load(), protectedGrowth})
	}
	for _, w := range twins {
		t.Run(w.load.Name, func(t *testing.T) {
			res := runCase(t, w.load, scenario.KubeletAlone)
			t.Logf("evicted by the kubelet: %v, innocents among them: %v, lowest margin %d MiB", res.Kubelet(), res.Innocents(), res.Lowest>>20)
			if w.grows > 0 {
				grew(t, res, w.grows)
			}
			if evicts := len(res.Kubelet()) > 0; evicts != (w.grows == 0) {
				t.Errorf("evicted by the kubelet: %v, want some: %v; the load is not the one the case is about", res.Kubelet(), w.grows == 0)
			}
		})
	}
}

// only counts the pods of one workload.
func only(apps []string, app string) int {
	n := 0
	for _, a := range apps {
		if a == app {
			n++
		}
	}
	return n
}

// noEvictions checks that no pod was evicted, and that Spillway asked for none, dry runs and refused requests included.
func noEvictions(t *testing.T, res *scenario.Result) {
	t.Helper()
	if len(res.Kubelet()) != 0 || len(res.API()) != 0 || len(res.Status.Evictions.Outcomes) != 0 {
		t.Errorf("evicted by the kubelet %v, through the API %v, asked for %+v, want none", res.Kubelet(), res.API(), res.Status.Evictions.Outcomes)
	}
}

// grew checks that the load was there: it took about so many MiB of the margin.
func grew(t *testing.T, res *scenario.Result, mib int) {
	t.Helper()
	if got := int((res.Start - res.Lowest) >> 20); got < mib*9/10 {
		t.Errorf("the margin fell by %d MiB, want about %d: the load was not there, and the case proves nothing", got, mib)
	}
}

// checkChoices holds the decisions in status against what each has to carry: the pod that the kubelet would evict at that moment,
// namespace/name first. With a prefix, in every decision to stand by it has to be that pod.
func checkChoices(t *testing.T, prefix string) {
	t.Helper()
	out, err := runner.Agent(t.Context(), "status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Decisions []struct {
			ID, State, Reason string
			KubeletChoice     string `json:"kubeletChoice"`
		}
	}
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, d := range s.Decisions {
		if slices.Contains([]string{"near-miss", "reclaim", "cache"}, d.State) { // no decision about evictions
			continue
		}
		seen++
		pod, _, _ := strings.Cut(d.KubeletChoice, " ")
		if !strings.Contains(pod, "/") || prefix != "" && d.State == standBy && !strings.HasPrefix(pod, prefix) {
			t.Errorf("decision %s, %s (%s): the kubelet's choice is %q, want one that begins with namespace/name %s", d.ID, d.State, d.Reason, d.KubeletChoice, prefix)
		}
	}
	if seen == 0 {
		t.Error("no decision in status")
	}
}
