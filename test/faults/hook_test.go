package faults

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"
)

// TestHook: a webhook answers by the review, and its manifest names its address and the certificate it is held against.
func TestHook(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]int{"allowed": 200, "busy": 429, "dropped": 0}
	h, err := ServeHook(l, Admission(func(r Review) (int, string) {
		if r.Namespace != "shop" || r.User.Name != "agent" || !r.DryRun {
			t.Errorf("review %+v", r)
		}
		return codes[r.Name], "try later"
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	var hook admissionregv1.ValidatingWebhookConfiguration
	if err := yaml.UnmarshalStrict([]byte(strings.TrimPrefix(h.Manifest("refuse", h.URL(), "hook", "refuse"), "---\n")), &hook); err != nil {
		t.Fatal(err)
	}
	w := hook.Webhooks[0]
	roots := x509.NewCertPool()
	if *w.ClientConfig.URL != h.URL() || w.NamespaceSelector.MatchLabels["hook"] != "refuse" || *w.FailurePolicy != admissionregv1.Fail || !roots.AppendCertsFromPEM(w.ClientConfig.CABundle) {
		t.Fatalf("configuration %+v", hook)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for name, code := range codes {
		t.Run(name, func(t *testing.T) {
			resp, err := client.Post(h.URL(), "application/json", strings.NewReader(`{"request": {"uid": "1", "namespace": "shop", "name": "`+name+`", "userInfo": {"username": "agent"}, "dryRun": true}}`))
			if code == 0 {
				if err == nil {
					resp.Body.Close()
					t.Fatalf("answer %d, want none", resp.StatusCode)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var got admissionv1.AdmissionReview
			if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
				t.Fatal(err)
			}
			a := got.Response
			if a.UID != "1" || a.Allowed != (code == 200) || !a.Allowed && (int(a.Result.Code) != code || a.Result.Message != "try later") {
				t.Errorf("answer %+v", a)
			}
		})
	}
}
