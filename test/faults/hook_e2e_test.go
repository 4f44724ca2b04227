//go:build e2e

package faults_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"spillway/test/cluster"
	"spillway/test/cluster/pki"
)

// webhooks serves admission of evictions inside the cluster's network and returns the configurations that have the API
// server ask it: in the namespaces with the label hook=refuse it says no, with hook=busy later (429), with hook=hang nothing.
// Nobody listens for hook=unreachable. All of them are of failurePolicy Fail.
func webhooks(t *testing.T, ctx context.Context, k *cluster.Cluster) string {
	t.Helper()
	ca, err := pki.NewAuthority("webhooks")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(pki.Request{Name: "webhooks", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := k.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/refuse", deny(http.StatusForbidden, "the webhook says no"))
	mux.HandleFunc("/busy", deny(http.StatusTooManyRequests, "try later"))
	mux.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-ctx.Done():
		}
	})
	server := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	text := ""
	for hook, url := range map[string]string{
		"refuse": "https://" + listener.Addr().String() + "/refuse", "busy": "https://" + listener.Addr().String() + "/busy",
		"hang": "https://" + listener.Addr().String() + "/hang", "unreachable": "https://127.0.0.1:1/",
	} {
		text += fmt.Sprintf(`---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: %[1]s}
webhooks:
- name: %[1]s.evictions.test
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 10
  namespaceSelector: {matchLabels: {hook: %[1]s}}
  rules: [{apiGroups: [""], apiVersions: [v1], resources: [pods/eviction], operations: [CREATE]}]
  clientConfig: {url: %[2]q, caBundle: %[3]s}
`, hook, url, base64.StdEncoding.EncodeToString(ca.PEM()))
	}
	return text
}

// deny answers every AdmissionReview with a refusal.
func deny(code int, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var review struct {
			Request struct {
				UID string `json:"uid"`
			} `json:"request"`
		}
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": map[string]any{
			"uid": review.Request.UID, "allowed": false, "status": map[string]any{"code": code, "message": message},
		}})
	}
}

// rootsOf returns the certificates that a server is held against.
func rootsOf(cfg *rest.Config) (*x509.CertPool, error) {
	own, err := rest.TLSConfigFor(&rest.Config{Host: cfg.Host, TLSClientConfig: rest.TLSClientConfig{CAFile: cfg.CAFile, CAData: cfg.CAData}})
	if err != nil {
		return nil, err
	}
	return own.RootCAs, nil
}
