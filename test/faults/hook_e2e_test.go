//go:build e2e

package faults_test

import (
	"context"
	"crypto/x509"
	"net/http"
	"testing"

	"k8s.io/client-go/rest"

	"spillway/test/cluster"
	"spillway/test/faults"
)

// webhooks serves admission of evictions inside the cluster's network and returns the configurations that have the API
// server ask it: in the namespaces with the label hook=refuse it says no, with hook=busy later (429), with hook=hang nothing.
// No server listens for hook=unreachable. All of them are of failurePolicy Fail.
func webhooks(t *testing.T, ctx context.Context, k *cluster.Cluster) string {
	t.Helper()
	listener, err := k.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	always := func(code int, message string) http.HandlerFunc {
		return faults.Admission(func(faults.Review) (int, string) { return code, message })
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/refuse", always(http.StatusForbidden, "the webhook says no"))
	mux.HandleFunc("/busy", always(http.StatusTooManyRequests, "try later"))
	mux.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-ctx.Done():
		}
	})
	hook, err := faults.ServeHook(listener, mux)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hook.Close(); err != nil {
			t.Error(err)
		}
	})
	text := hook.Manifest("unreachable", "https://127.0.0.1:1/", "hook", "unreachable")
	for _, name := range []string{"refuse", "busy", "hang"} {
		text += hook.Manifest(name, hook.URL()+"/"+name, "hook", name)
	}
	return text
}

// rootsOf returns the certificates that a server is held against.
func rootsOf(cfg *rest.Config) (*x509.CertPool, error) {
	own, err := rest.TLSConfigFor(&rest.Config{Host: cfg.Host, TLSClientConfig: rest.TLSClientConfig{CAFile: cfg.CAFile, CAData: cfg.CAData}})
	if err != nil {
		return nil, err
	}
	return own.RootCAs, nil
}
