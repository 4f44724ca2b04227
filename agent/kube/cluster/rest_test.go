package cluster

import (
	"encoding/base64"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/agent/kube"
	"spillway/agent/status"
)

// TestRequestsAtRest counts what an agent asks the API server for while nothing happens, an hour in each second: 10 an hour at
// the most, where one every 5 min for each of these would be 48.
func TestRequestsAtRest(t *testing.T) {
	const hours, scale = 4, time.Hour / time.Second
	const admission = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
	binding := `{"spec":{"policyName":"NAME","validationActions":["Deny"],"paramRef":{"parameterNotFoundAction":"Deny"}}}`
	api := &clusterAPI{by: map[string]string{
		"/api/v1/nodes/n1": `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","uid":"u"},"status":{"allocatable":{"memory":"8Gi"},"nodeInfo":{"kubeletVersion":"v1.36.3"}}}`,
		"/version":         `{"gitVersion":"v1.36.3"}`,
		admission + "ies/" + kube.OwnNodePolicy: `{"spec":{"paramKind":{"kind":"Pod"},"matchConstraints":{"objectSelector":{"matchLabels":{"spillway/agent":"true"}}},
			"validations":[{"expression":"params.spec.nodeName == request.userInfo.extra['x'][0]"}]}}`,
		admission + "ies/" + kube.LabelPolicy:         `{"spec":{"validations":[{"expression":"object.metadata.labels['spillway/agent']"}]}}`,
		admission + "ybindings/" + kube.OwnNodePolicy: strings.ReplaceAll(binding, "NAME", kube.OwnNodePolicy),
		admission + "ybindings/" + kube.LabelPolicy:   strings.ReplaceAll(binding, "NAME", kube.LabelPolicy),
	}}
	exact := true
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/nodes/n1" && r.URL.Query().Get("resourceVersion") != "0" {
			exact = false
		}
		api.ServeHTTP(w, r)
	}))
	defer server.Close()
	dir := t.TempDir()
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", host)
	t.Setenv("KUBERNETES_SERVICE_PORT", port)
	claims := base64.RawURLEncoding.EncodeToString([]byte(`{"kubernetes.io":{"node":{"name":"n1"}}}`))
	for name, text := range map[string][]byte{"token": []byte("h." + claims + ".s"), "ca.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client, err := kube.New(kube.Options{NodeName: "n1", ServiceAccountDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var src states
	// The thresholds are known without the kubelet.
	c := New(Options{Client: client, Settings: Settings{Kubelet: Kubelet{MemoryAvailable: "100Mi"}}, V2: true, Source: src.set})
	c.every = cadence{state: calmCadence.state / scale * 20, retry: calmCadence.retry / scale, node: calmCadence.node / scale, rest: calmCadence.rest / scale}
	stop := running(t, c.Run)
	time.Sleep(hours * time.Second)
	stop()
	if state, detail := src.of("own-node-scope"); state != status.OK {
		t.Errorf("scope is %s: %s", state, detail)
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	counts := map[string]int{}
	for _, path := range api.got {
		counts[path]++
	}
	t.Logf("asked for in %d hours: %v", hours, counts)
	if n := counts["/api/v1/nodes/n1"]; n < hours || n > 1+hours*6 || !exact {
		t.Errorf("the node was asked for %d times in %d hours, from the cache: %v; want every 11 to 19 min", n, hours, exact)
	}
	if n := counts["/version"]; n != 1 {
		t.Errorf("/version was asked for %d times, want once at the start", n)
	}
	for _, path := range []string{"ies/" + kube.OwnNodePolicy, "ies/" + kube.LabelPolicy, "ybindings/" + kube.OwnNodePolicy, "ybindings/" + kube.LabelPolicy} {
		if n := counts[admission+path]; n < 2 || n > 2+hours*4/3 {
			t.Errorf("%s was asked for %d times in %d hours", path, n, hours)
		}
	}
	if len(api.got) > 7+hours*10 {
		t.Errorf("%d requests in %d hours", len(api.got), hours)
	}
}
