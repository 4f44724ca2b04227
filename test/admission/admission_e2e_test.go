//go:build e2e

package admission_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"spillway/agent/kube"
	"spillway/agent/policy"
)

const shipped = "../../deploy/base/admission.yaml"

// TestOwnNodePolicies: the shipped policies refuse the agent's token every pod of another node and every Eviction without the
// label, as dry runs too; and let everyone else evict, whatever their labels.
func TestOwnNodePolicies(t *testing.T) {
	s := startServer(t)
	s.install(t)
	s.kubectl(t, "apply", "-f", shipped)
	s.kubectl(t, "delete", "validatingadmissionpolicybinding", "spillway-observe")
	s.create(t, "shop", pod("there", "elsewhere", 0), pod("here", s.node, 0), pod("here-too", s.node, 0), pod("of-others", s.node, 0))
	bound, loose := s.token(t, true), s.token(t, false)
	agent := s.agent(t, bound)
	scope := func() string {
		got, err := agent.OwnNodeScope(t.Context())
		if err != nil {
			return err.Error()
		}
		return got
	}
	if got := scope(); got != "ValidatingAdmissionPolicy "+kube.OwnNodePolicy {
		t.Errorf("scope %q", got)
	}
	for _, tc := range []struct {
		name, token, pod string
		labels           string // JSON
		dryRun           bool
		code             int
		message          string
	}{
		{"other node, dry run", bound, "there", `{"spillway/agent":"true"}`, true, 403, "own node only"}, // first: it waits until the policies are in force
		{"other node", bound, "there", `{"spillway/agent":"true"}`, false, 403, "own node only"},
		{"other node without the label", bound, "there", `{}`, false, 403, "needs the label spillway/agent=true"},
		{"no labels at all", bound, "there", `null`, false, 403, "needs the label spillway/agent=true"},
		{"another value of the label", bound, "there", `{"spillway/agent":"yes"}`, false, 403, "needs the label spillway/agent=true"},
		{"own node without the label", bound, "here", `null`, true, 403, "needs the label spillway/agent=true"},
		{"a token of no node", loose, "here", `{"spillway/agent":"true"}`, true, 403, "names no node"},
		{"own node, dry run", bound, "here", `{"spillway/agent":"true"}`, true, 201, ""},
		{"own node", bound, "here", `{"spillway/agent":"true"}`, false, 201, ""},
		{"another user", "", "of-others", `null`, true, 201, ""},
		{"another user with the label", "", "of-others", `{"spillway/agent":"true"}`, true, 201, ""},
		{"another user, any node", "", "there", `null`, false, 201, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// Policies and pods reach the API server's caches a moment after they are written.
			var code int
			var message string
			for range 50 {
				if code, message, _ = s.evict(t, tc.token, "shop", tc.pod, tc.labels, tc.dryRun); code == tc.code && strings.Contains(message, tc.message) {
					return
				}
				if !tc.dryRun && code < 300 {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Errorf("answer %d %s, want %d %q", code, message, tc.code, tc.message)
		})
	}

	// The agent's own client writes the label.
	got, err := s.admin.CoreV1().Pods("shop").Get(t.Context(), "here-too", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if a := agent.Evict(t.Context(), kube.EvictRequest{Namespace: "shop", Name: "here-too", UID: string(got.UID)}); a.Verb != policy.Accepted {
		t.Errorf("the agent's client: %+v, want accepted", a)
	}
	for _, name := range []string{kube.OwnNodePolicy, kube.LabelPolicy} {
		s.kubectl(t, "delete", "validatingadmissionpolicybinding", name)
		if got := scope(); !strings.Contains(got, name+" does not exist") {
			t.Errorf("without binding %s: scope %q", name, got)
		}
		s.kubectl(t, "apply", "-f", shipped)
	}
	t.Run("flow control", func(t *testing.T) { s.flowControl(t, bound) })
}

// TestEvictionCost measures what an eviction takes by the number of pods in its namespace: of another user and of the agent,
// without policies, with one policy for all, and with the shipped ones. Other users' cost may not grow with the namespace.
func TestEvictionCost(t *testing.T) {
	s := startServer(t)
	s.install(t)
	token := s.token(t, true)
	sizes := []int{10, 1000, 5000}
	for _, n := range sizes {
		var all []*corev1.Pod
		for i := range n {
			all = append(all, pod(fmt.Sprintf("p-%d", i), s.node, 3))
		}
		s.create(t, fmt.Sprintf("size-%d", n), all...)
	}
	type cell struct {
		p50, p99 time.Duration
		cpu      time.Duration // of the API server for each
	}
	measure := func(t *testing.T, token, namespace string) cell {
		const times = 20
		var took []time.Duration
		name, labels := "victim", "null"
		if token != "" {
			labels = `{"spillway/agent":"true"}`
		}
		var cpu time.Duration
		for i := range times + 3 {
			s.create(t, namespace, pod(name, s.node, 3))
			before := s.cpu(t)
			code, message, d := s.evict(t, token, namespace, name, labels, false)
			if code != 201 {
				t.Fatalf("evict in %s: %d %s", namespace, code, message)
			}
			if i >= 3 { // the first ones compile and connect
				took, cpu = append(took, d), cpu+s.cpu(t)-before
			}
			s.remove(t, namespace, name)
		}
		slices.Sort(took)
		return cell{took[times/2], took[times-1], cpu / times}
	}
	result := map[string]cell{}
	for _, p := range []struct{ name, file string }{{"none", ""}, {"one policy", "testdata/unsplit.yaml"}, {"shipped", shipped}} {
		s.kubectl(t, "delete", "validatingadmissionpolicies,validatingadmissionpolicybindings", "--all")
		if p.file != "" {
			s.kubectl(t, "apply", "-f", p.file)
			s.kubectl(t, "delete", "validatingadmissionpolicybinding", "spillway-observe", "--ignore-not-found")
		}
		time.Sleep(3 * time.Second) // until the policies are in force and their informer of pods has synced
		for _, n := range sizes {
			for _, who := range []struct{ name, token string }{{"others", ""}, {"the agent", token}} {
				c := measure(t, who.token, fmt.Sprintf("size-%d", n))
				result[fmt.Sprint(p.name, who.name, n)] = c
				t.Logf("%-10s %-9s %5d pods: p50 %6.1f ms, longest of 20 %6.1f ms, API server CPU %6.1f ms", p.name, who.name, n,
					c.p50.Seconds()*1e3, c.p99.Seconds()*1e3, c.cpu.Seconds()*1e3)
			}
		}
	}
	small, large := result["shippedothers10"], result["shippedothers5000"]
	if limit := 2*small.p50 + 5*time.Millisecond; large.p50 > limit {
		t.Errorf("an eviction by another user takes %s with 5,000 pods and %s with 10: it may not depend on the namespace", large.p50, small.p50)
	}
	if one := result["one policyothers5000"]; one.p50 < 3*large.p50 {
		t.Errorf("one policy for all takes %s, the shipped ones %s: the measurement does not see what they differ in", one.p50, large.p50)
	}
}

// flowControl: the agent's evictions, and nothing else of it, have a priority level of their own.
func (s *server) flowControl(t *testing.T, token string) {
	s.kubectl(t, "apply", "-f", "../../deploy/base/flowcontrol.yaml")
	level, err := s.admin.FlowcontrolV1().PriorityLevelConfigurations().Get(t.Context(), "spillway", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := s.admin.FlowcontrolV1().FlowSchemas().Get(t.Context(), "spillway-evictions", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.create(t, "shop", pod("flow", s.node, 0))
	c := s.client(t, token)
	ask := func(r *rest.Request) (schemaUID, levelUID string) {
		t.Helper()
		if err := r.Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
		return s.flow.Load().Get("X-Kubernetes-Pf-Flowschema-Uid"), s.flow.Load().Get("X-Kubernetes-Pf-Prioritylevel-Uid")
	}
	var flow, prio string
	for range 50 { // until the configuration is in force
		flow, prio = ask(c.Post().AbsPath("/api/v1/namespaces/shop/pods/flow/eviction").Param("dryRun", "All").SetHeader("Content-Type", "application/json").Body([]byte(eviction("shop", "flow", `{"spillway/agent":"true"}`))))
		if flow == string(schema.UID) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if flow != string(schema.UID) || prio != string(level.UID) {
		t.Errorf("an eviction has schema %s and level %s, want %s and %s", flow, prio, schema.UID, level.UID)
	}
	if flow, prio = ask(c.Get().AbsPath("/api/v1/namespaces/shop/pods")); flow == string(schema.UID) || prio == string(level.UID) {
		t.Errorf("a list of pods has schema %s and level %s: evictions may not wait behind it", flow, prio)
	}
}

// install makes what the manifest does beside policies: the namespace, the service account with its rights, and a pod of it.
func (s *server) install(t *testing.T) {
	t.Helper()
	for _, f := range []string{"namespace.yaml", "serviceaccount.yaml", "rbac.yaml"} {
		s.kubectl(t, "apply", "-f", filepath.Join("../../deploy/base", f))
	}
	for _, name := range []string{s.node, "elsewhere"} {
		if _, err := s.admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	p := pod("agent", s.node, 0)
	p.Spec.ServiceAccountName = "spillway"
	s.create(t, "spillway-system", p)
}

// token is one of the agent's service account: bound to its pod, and by that to its node, or to nothing.
func (s *server) token(t *testing.T, bound bool) string {
	t.Helper()
	var r authv1.TokenRequest
	if bound {
		r.Spec.BoundObjectRef = &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "agent"}
	}
	got, err := s.admin.CoreV1().ServiceAccounts("spillway-system").CreateToken(t.Context(), "spillway", &r, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return got.Status.Token
}

// agent is the agent's own client with that token.
func (s *server) agent(t *testing.T, token string) *kube.Client {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string][]byte{"token": []byte(token), "ca.crt": s.config.CAData} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", s.port)
	c, err := kube.New(kube.Options{NodeName: s.node, ServiceAccountDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (s *server) client(t *testing.T, token string) *rest.RESTClient {
	t.Helper()
	if token == "" {
		return s.admin.CoreV1().RESTClient().(*rest.RESTClient)
	}
	if c := s.clients[token]; c != nil {
		return c
	}
	cfg := rest.AnonymousClientConfig(s.config)
	cfg.BearerToken, cfg.QPS = token, -1
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return &headers{rt, &s.flow} })
	set, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.clients[token] = set.CoreV1().RESTClient().(*rest.RESTClient)
	return s.clients[token]
}

func eviction(namespace, name, labels string) string {
	return fmt.Sprintf(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"namespace":%q,"name":%q,"labels":%s},"deleteOptions":{"gracePeriodSeconds":1}}`, namespace, name, labels)
}

// evict posts one Eviction as the owner of the token, "" the administrator, and tells the answer and how long it took.
func (s *server) evict(t *testing.T, token, namespace, name, labels string, dryRun bool) (int, string, time.Duration) {
	t.Helper()
	r := s.client(t, token).Post().AbsPath("/api/v1/namespaces", namespace, "pods", name, "eviction").
		SetHeader("Content-Type", "application/json").Body([]byte(eviction(namespace, name, labels)))
	if dryRun {
		r.Param("dryRun", metav1.DryRunAll)
	}
	began, code := time.Now(), 0
	res := r.Do(t.Context())
	took := time.Since(began)
	res.StatusCode(&code)
	if err := res.Error(); err != nil {
		return code, err.Error(), took
	}
	return code, "", took
}

func (s *server) create(t *testing.T, namespace string, pods ...*corev1.Pod) {
	t.Helper()
	if !s.namespaces[namespace] {
		_, err := s.admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		s.namespaces[namespace] = true
	}
	var wg sync.WaitGroup
	work := make(chan *corev1.Pod)
	for range min(8*runtime.GOMAXPROCS(0), len(pods)) {
		wg.Go(func() {
			for p := range work {
				if _, err := s.admin.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
					t.Errorf("create pod %s/%s: %v", namespace, p.Name, err)
				}
			}
		})
	}
	for _, p := range pods {
		work <- p
	}
	close(work)
	wg.Wait()
}

// remove ends an evicted pod as a kubelet would.
func (s *server) remove(t *testing.T, namespace, name string) {
	t.Helper()
	none := int64(0)
	if err := s.admin.CoreV1().Pods(namespace).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &none}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

// pod has so many containers of the usual size, beside the first.
func pod(name, node string, sidecars int) *corev1.Pod {
	var grace int64 = 1
	no := false
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "cart", "app.kubernetes.io/name": "cart", "pod-template-hash": "6f8d9c7b5"}}}
	p.Spec = corev1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &no}
	for i := range 1 + max(0, sidecars-1) {
		c := corev1.Container{Name: fmt.Sprintf("c-%d", i), Image: "registry.example/shop/cart:1.2.3"}
		if sidecars > 0 {
			for e := range 10 {
				c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", e), Value: "a value of the usual length"})
			}
			c.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi"), corev1.ResourceCPU: resource.MustParse("100m")}
			c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	return p
}
