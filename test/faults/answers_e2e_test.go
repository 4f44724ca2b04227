//go:build e2e

package faults_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/policy"
	"spillway/test/cluster"
	"spillway/test/faults"
)

// answer is one way in which the API server, or the way to it, can meet an Eviction call, and what has to come of it.
type answer struct {
	name      string // of the pod too, and of its label "case"
	namespace string // default: shop
	account   string // default: agent
	fault     faults.Fault
	before    func(r *answersRig) // before the call
	during    func(r *answersRig) // while the proxy holds the request; it is passed on afterwards

	verb    policy.Verb
	code    int
	text    string // part of what the record says
	retry   time.Duration
	state   evict.State
	counted int           // towards the hourly cap
	forbid  string        // part of why no eviction may start; empty: the next candidate may go at once
	wait    time.Duration // until one may start
	refused string        // part of why the same pod is not asked for again; empty: it may be
	server  int           // what the API server itself answered; 0: it was not asked, or did not answer
	asked   bool          // the request reached the API server
	evicted bool          // the pod is on its way out
}

// answers are those of design rule 6. What a server says by nature is said by the real one; the proxy does what it
// cannot be brought to.
func answers() []answer {
	const busy = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"busy","reason":"TooManyRequests","code":429}`
	plain := func(code int, body string, header http.Header) faults.Fault {
		return faults.Fault{Answer: &faults.Answer{Code: code, Header: header, Body: body}}
	}
	return []answer{
		{name: "accepted", verb: policy.Accepted, code: 201, state: evict.InFlight, counted: 1, forbid: "on its way out", refused: "asked to go already", server: 201, asked: true, evicted: true},
		{name: "no-such-pod", before: func(r *answersRig) {
			r.kubectl("delete", "pod", "no-such-pod", "-n", "shop", "--grace-period=0", "--force")
		},
			verb: policy.Gone, code: 404, text: `pods "no-such-pod" not found`, state: evict.Vanished, refused: "gone when its eviction", server: 404, asked: true},
		{name: "recreated", during: func(r *answersRig) {
			r.kubectl("delete", "pod", "recreated", "-n", "shop", "--grace-period=0", "--force")
			r.apply(podManifest("shop", "recreated"))
		}, verb: policy.Gone, code: 409, text: "the UID in the precondition", state: evict.Vanished, refused: "gone when its eviction", server: 409, asked: true},
		{name: "budget", verb: policy.Budget, code: 429, text: "needs 1 healthy pods and has 1 currently", state: evict.Refused, refused: "refused by a PodDisruptionBudget", server: 429, asked: true},
		{name: "budget-lags", before: (*answersRig).budgetLags, verb: policy.Budget, code: 429, text: "still being processed", retry: 10 * time.Second, state: evict.Refused,
			refused: "refused by a PodDisruptionBudget", server: 429, asked: true},
		{name: "two-budgets", verb: policy.Blocked, code: 500, text: "more than one PodDisruptionBudget", state: evict.Refused, refused: "refused by the API server (500)", server: 500, asked: true},
		{name: "no-right", account: "nobody", verb: policy.Blocked, code: 403, text: `cannot create resource "pods/eviction"`, state: evict.Refused, refused: "refused by the API server (403)", server: 403, asked: true},
		{name: "policy", account: "policed", verb: policy.Blocked, code: 422, text: "no evictions today", state: evict.Refused, refused: "refused by the API server (422)", server: 422, asked: true},
		{name: "garbage-token", account: "garbage", verb: policy.Unauthorized, code: 401, text: "Unauthorized", state: evict.Refused, forbid: "does not accept our credentials (401)", wait: time.Minute, server: 401, asked: true},
		{name: "revoked-token", account: "revoked", before: func(r *answersRig) { r.kubectl("delete", "serviceaccount", "revoked", "-n", "shop") },
			verb: policy.Unauthorized, code: 401, text: "Unauthorized", state: evict.Refused, forbid: "does not accept our credentials (401)", wait: time.Minute, server: 401, asked: true},
		{name: "overload", account: "flooded", before: (*answersRig).takeTheSeat, verb: policy.Backoff, code: 429, text: "Too many requests", retry: time.Second, state: evict.Refused, forbid: "cannot take evictions now (429)", wait: time.Second, server: 429, asked: true},
		{name: "webhook-refuses", namespace: "refusing", verb: policy.Blocked, code: 403, text: "the webhook says no", state: evict.Refused, refused: "refused by the API server (403)", server: 403, asked: true},
		{name: "webhook-is-busy", namespace: "busy", verb: policy.Blocked, code: 429, text: "try later", state: evict.Refused, refused: "refused by the API server (429)", server: 429, asked: true},
		{name: "webhook-unreachable", namespace: "unreachable", verb: policy.Backoff, code: 500, text: "failed calling webhook", state: evict.Refused, refused: "could not evict it (500)", server: 500, asked: true},
		{name: "webhook-hangs", namespace: "hanging", verb: policy.Unknown, state: evict.Uncertain, counted: 1, forbid: "may still happen", wait: 10 * time.Second, asked: true, refused: "asked to go already"},

		{name: "wait-20-s", fault: plain(429, busy, http.Header{"Retry-After": {"20"}, "Content-Type": {"application/json"}}), verb: policy.Backoff, code: 429, text: "busy", retry: 20 * time.Second,
			state: evict.Refused, forbid: "cannot take evictions now (429)", wait: 20 * time.Second},
		{name: "overload-no-header", fault: plain(429, "Too many requests, please try again later.\n", nil), verb: policy.Backoff, code: 429, text: "Too many requests",
			state: evict.Refused, forbid: "cannot take evictions now (429)", wait: time.Second},
		{name: "unavailable", fault: plain(503, "apiserver is shutting down", nil), verb: policy.Backoff, code: 503, text: "shutting down", state: evict.Refused, forbid: "cannot take evictions now (503)", wait: time.Second},
		{name: "time-out-before", fault: faults.Fault{Hold: make(chan struct{})}, verb: policy.Unknown, state: evict.Uncertain, counted: 1, forbid: "may still happen", wait: 10 * time.Second, refused: "asked to go already"},
		{name: "time-out-after", fault: faults.Fault{HoldAnswer: make(chan struct{})}, verb: policy.Unknown, state: evict.Uncertain, counted: 1, forbid: "may still happen", refused: "asked to go already", server: 201, asked: true, evicted: true},
		{name: "cut-before", fault: faults.Fault{Cut: faults.CutBefore}, verb: policy.Unknown, state: evict.Uncertain, counted: 1, forbid: "may still happen", wait: 10 * time.Second, refused: "asked to go already"},
		{name: "cut-after", fault: faults.Fault{Cut: faults.CutAfter}, verb: policy.Unknown, state: evict.Uncertain, counted: 1, forbid: "may still happen", refused: "asked to go already", server: 201, asked: true, evicted: true},
	}
}

// TestAnswersOfTheAPIServer plays every answer to an Eviction call through client and manager of evictions, as the agent
// joins them: what it is taken for, whether it counts, who may be asked next and when, and what becomes of a call that had
// no answer by what the watch of the pods shows.
func TestAnswersOfTheAPIServer(t *testing.T) {
	r := newAnswersRig(t)
	for _, a := range answers() {
		t.Run(a.name, func(t *testing.T) { r.play(t, a) })
	}
}

// answersRig is a cluster, the proxy in front of its API server, and clients of the proxy by their account.
type answersRig struct {
	t       *testing.T
	ctx     context.Context
	k       *cluster.Cluster
	proxy   *faults.Proxy
	clients map[string]*kube.Client
}

func newAnswersRig(t *testing.T) *answersRig {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	r := &answersRig{t: t, ctx: ctx, k: cluster.Start(t, cluster.Options{Name: "answers"}), clients: map[string]*kube.Client{}}
	admin := r.k.RESTConfig()
	roots, err := rootsOf(admin)
	if err != nil {
		t.Fatal(err)
	}
	if r.proxy, err = faults.Start(faults.Options{Target: admin.Host, RootCAs: roots, Dial: admin.Dial}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.proxy.Close() })
	text, err := os.ReadFile(filepath.Join("testdata", "answers.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	r.apply(string(text))
	r.apply(webhooks(t, ctx, r.k))
	pods := podManifest("shop", "next")
	for _, a := range answers() {
		pods += "---\n" + podManifest(a.in(), a.name)
		r.client(a.by())
	}
	r.apply(pods)
	watching, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.clients["agent"].Run(watching) }()
	t.Cleanup(func() {
		end()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r.until("all pods to run", func() bool {
		running := 0
		for _, p := range r.clients["agent"].Pods().Pods {
			if len(p.Containers) == 1 && p.Containers[0].Running {
				running++
			}
		}
		return running == len(answers())+1
	})
	return r
}

func (a *answer) in() string {
	if a.namespace == "" {
		return "shop"
	}
	return a.namespace
}

func (a *answer) by() string {
	if a.account == "" {
		return "agent"
	}
	return a.account
}

// client returns the client of an account, which finds the API server at the proxy.
func (r *answersRig) client(account string) *kube.Client {
	r.t.Helper()
	if c := r.clients[account]; c != nil {
		return c
	}
	token := "garbage"
	if account != token {
		got, err := r.k.Client().CoreV1().ServiceAccounts("shop").CreateToken(r.ctx, account, &authv1.TokenRequest{}, metav1.CreateOptions{})
		if err != nil {
			r.t.Fatal(err)
		}
		token = got.Status.Token
	}
	path := filepath.Join(r.t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, kubeconfig(r.proxy, token), 0o600); err != nil {
		r.t.Fatal(err)
	}
	c, err := kube.New(kube.Options{Kubeconfig: path, NodeName: r.k.NodeName()})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	r.clients[account] = c
	return c
}

func (r *answersRig) apply(manifests string) {
	r.t.Helper()
	if err := r.k.Apply(r.ctx, manifests); err != nil {
		r.t.Fatal(err)
	}
}

func (r *answersRig) kubectl(args ...string) {
	r.t.Helper()
	if _, err := r.k.Kubectl(r.ctx, args...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *answersRig) until(what string, ok func() bool) {
	r.t.Helper()
	limit := time.After(2 * time.Minute)
	for !ok() {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-limit:
			r.t.Fatalf("%s: not within 2 min; pods %+v", what, r.clients["agent"].Pods())
		}
	}
}

// budgetLags makes a budget while nobody works on its status.
func (r *answersRig) budgetLags() {
	signal := func(name string) {
		if out, err := r.k.Command(r.ctx, "sh", "-c", "kill -"+name+" $(pidof kube-controller-manager)").CombinedOutput(); err != nil {
			r.t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	signal("STOP")
	r.t.Cleanup(func() { signal("CONT") })
	r.apply("{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: lags, namespace: shop}, spec: {minAvailable: 1, selector: {matchLabels: {case: budget-lags}}}}")
}

// takeTheSeat keeps a call hanging in a webhook: a level of priority without seats executes one request at a time.
func (r *answersRig) takeTheSeat() {
	p := r.pod("hanging", "webhook-hangs")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			r.clients["flooded"].Evict(r.ctx, kube.EvictRequest{Namespace: p.Namespace, Name: p.Name, UID: p.UID, DryRun: true})
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond): // another call may have had the seat
			}
		}
	}()
	r.t.Cleanup(func() {
		close(stop)
		<-done
	})
}

// pod finds a pod in the view of the watch.
func (r *answersRig) pod(namespace, name string) *policy.Pod {
	view := r.clients["agent"].Pods()
	for i := range view.Pods {
		if p := &view.Pods[i]; p.Namespace == namespace && p.Name == name {
			return p
		}
	}
	return nil
}

// fact is what the watch shows of a victim; its cgroup counts as there as long as its object.
func (r *answersRig) fact(p *policy.Pod) evict.Fact {
	view := r.clients["agent"].Pods()
	f := evict.Fact{Stale: view.Err != "" || !view.Synced}
	for i := range view.Pods {
		if view.Pods[i].UID == p.UID {
			f.Listed, f.Terminating, f.HasCgroup, f.Usage = true, view.Pods[i].Terminating, true, 4<<20
		}
	}
	return f
}

func (r *answersRig) play(t *testing.T, a answer) {
	outer := r.t
	r.t = t
	defer func() { r.t = outer }()
	client, pod := r.clients[a.by()], r.pod(a.in(), a.name)
	if pod == nil {
		t.Fatalf("no pod %s/%s", a.in(), a.name)
	}
	if a.before != nil {
		a.before(r)
	}
	request := kube.EvictRequest{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, DryRun: true}
	if a.server != 0 && a.server != 201 || a.namespace != "" {
		// Policies, webhooks and the rest are in force a moment after they are written, and a token's for a moment after its end.
		r.until("the API server to answer so", func() bool {
			if a.during != nil {
				return true
			}
			got := client.Evict(r.ctx, request)
			// The manager knows a webhook's denial by its words, whatever its code.
			return got.Code == a.code && (got.Verb == a.verb || a.verb == policy.Blocked && got.Verb == policy.Backoff)
		})
	}
	m, err := evict.New(evict.Options{Call: func(ctx context.Context, q evict.Request) policy.Answer {
		return client.Evict(ctx, kube.EvictRequest{Namespace: q.Namespace, Name: q.Name, UID: q.UID, DryRun: q.DryRun})
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.ctx)
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	ask := func(now time.Time, p *policy.Pod) *evict.Outcome {
		t.Helper()
		o, ok := m.Start(now, evict.Victim{Pod: p, DecisionID: a.name, Joins: true})
		if !ok {
			t.Fatalf("%s was not asked for: %q %q", p.Key(), m.ForbidJoining(now), m.RefusedBefore(now, p.UID))
		}
		return o
	}

	take := func() *evict.Outcome {
		answered := <-m.Results() // within the 3 s of a call
		return m.Take(time.Now(), answered)
	}

	fault := a.fault
	release := make(chan struct{})
	if a.during != nil {
		fault.Hold = release
	}
	r.proxy.Forget()
	r.proxy.Set(fault)
	o := ask(time.Now(), pod)
	if a.during != nil {
		if _, err := r.proxy.Await(ctx, func(s []faults.Request) bool { return len(s) == 1 }); err != nil {
			t.Fatal(err)
		}
		a.during(r)
		close(release)
	}
	take()
	now := time.Now()
	r.proxy.Set(faults.Fault{})

	t.Logf("%s %d in %s, retry after %s: %s", o.Answer.Verb, o.Answer.Code, o.AnswerAt.Sub(o.AskedAt).Round(time.Millisecond), o.Answer.RetryAfter, o.Answer.Message)
	if o.Answer.Verb != a.verb || o.Answer.Code != a.code || !strings.Contains(o.Answer.Message, a.text) || o.Answer.RetryAfter != a.retry || o.State != a.state {
		t.Errorf("outcome %s by %+v; want %s by %s %d %q, retry after %s", o.State, o.Answer, a.state, a.verb, a.code, a.text, a.retry)
	}
	if n, _ := m.LastHour(now); n != a.counted {
		t.Errorf("counted %d times, want %d", n, a.counted)
	}
	if why := m.Forbid(now); (why == "") != (a.forbid == "") || !strings.Contains(why, a.forbid) {
		t.Errorf("forbidden because %q, want %q", why, a.forbid)
	}
	if why := m.RefusedBefore(now, pod.UID); (why == "") != (a.refused == "") || !strings.Contains(why, a.refused) {
		t.Errorf("not asked for again because %q, want %q", why, a.refused)
	}
	seen := slices.DeleteFunc(r.proxy.Seen(), func(q faults.Request) bool { return !strings.Contains(q.Path, "/"+a.name+"/") })
	if len(seen) != 1 {
		t.Fatalf("%d requests, want 1: %+v", len(seen), seen)
	}
	if !strings.Contains(seen[0].Body, `"preconditions":{"uid":"`+pod.UID+`"}`) {
		t.Errorf("request without the UID as precondition: %s", seen[0].Body)
	}
	if seen[0].Forwarded.IsZero() == a.asked || seen[0].Code != a.server {
		t.Errorf("passed on at %v and answered %d, want %v and %d", seen[0].Forwarded, seen[0].Code, a.asked, a.server)
	}

	look := func(at time.Time) { m.Observe(at, false, 0, r.fact) }
	switch {
	case a.state == evict.Uncertain && a.evicted:
		r.until("the watch to show it", func() bool { look(time.Now()); return o.State != evict.Uncertain })
		if n, _ := m.LastHour(time.Now()); n != 1 || o.State != evict.InFlight && o.State != evict.Released {
			t.Errorf("state %s, counted %d times, want it on its way out and counted once", o.State, n)
		}
		fallthrough
	case a.evicted:
		r.until("the pod to be gone", func() bool { look(time.Now()); return !o.Open() })
		if o.State != evict.Released {
			t.Errorf("state %s, want released", o.State)
		}
		if why := m.Forbid(o.AnswerAt); a.state == evict.InFlight && o.MeasuredKnown && why != "" && !strings.Contains(why, "cooldown") {
			t.Errorf("forbidden because %q", why)
		}
	case a.state == evict.Uncertain:
		look(now.Add(a.wait - time.Second))
		if o.State != evict.Uncertain {
			t.Errorf("state %s a second before it may be settled", o.State)
		}
		look(now.Add(a.wait + time.Second))
		if n, _ := m.LastHour(now); o.State != evict.NotHappened || n != 0 {
			t.Errorf("state %s, counted %d times, want it not to have happened and not counted", o.State, n)
		}
		if p := r.pod(a.in(), a.name); p == nil || p.Terminating || p.UID != pod.UID {
			t.Errorf("pod %+v, want it as it was", p)
		}
		if a.namespace == "" { // the same pod may be asked for again, on a new connection where the old one was cut
			ask(now.Add(a.wait+time.Second), pod)
			if o := take(); o.State != evict.InFlight {
				t.Errorf("asked again: %s by %+v", o.State, o.Answer)
			}
		}
	case a.forbid != "":
		if _, ok := m.Start(now, evict.Victim{Pod: r.pod("shop", "next"), Joins: true}); ok {
			t.Error("another pod may be asked for at once")
			break
		}
		if m.Forbid(o.AnswerAt.Add(a.wait-50*time.Millisecond)) == "" || m.Forbid(o.AnswerAt.Add(a.wait+50*time.Millisecond)) != "" {
			t.Errorf("the next may not start after %s: %q", a.wait, m.Forbid(now))
		}
		if p := r.pod(a.in(), a.name); p == nil || p.Terminating {
			t.Errorf("pod %+v, want it as it was", p)
		}
	default: // the next candidate goes in the same round
		next := *r.pod("shop", "next")
		ask(now, &next)
		want := evict.InFlight
		if a.account != "" {
			want = evict.Refused
		}
		if o := take(); o.State != want || want == evict.Refused && o.Answer.Code != a.code {
			t.Errorf("next candidate: %s by %+v, want %s", o.State, o.Answer, want)
		}
		if want == evict.InFlight {
			r.until("the next candidate to be gone", func() bool { return r.fact(&next) == evict.Fact{} })
			r.apply(podManifest("shop", "next"))
			r.until("another one", func() bool {
				p := r.pod("shop", "next")
				return p != nil && len(p.Containers) == 1 && p.Containers[0].Running
			})
		}
	}
}

func podManifest(namespace, name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %[2]s, namespace: %[1]s, labels: {case: %[2]s}}\nspec:\n  automountServiceAccountToken: false\n  terminationGracePeriodSeconds: 1\n"+
		"  containers: [{name: main, image: %[3]q, imagePullPolicy: IfNotPresent, args: [hold, 4Mi]}]\n", namespace, name, cluster.WorkloadImage)
}

// kubeconfig leads to the proxy with a token.
func kubeconfig(p *faults.Proxy, token string) []byte {
	data, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "x",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": p.URL(), "certificate-authority-data": p.CA()}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": token}}},
		"contexts": []any{map[string]any{"name": "x", "context": map[string]any{"cluster": "c", "user": "u"}}},
	})
	if err != nil {
		panic(err) // maps of strings
	}
	return data
}
