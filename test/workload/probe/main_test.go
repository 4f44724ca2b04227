package main

import (
	"bytes"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProbe(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte("path " + r.URL.Path))
	}))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	env := func(name string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": u.Hostname(), "KUBERNETES_SERVICE_PORT": u.Port()}[name]
	}
	for name, tc := range map[string]struct {
		token, ca string
		args      []string
		env       func(string) string
		says      string // in the output, or in the error after "!"
	}{
		"default path":  {"secret\n", string(ca), nil, env, "path /version"},
		"given path":    {"secret", string(ca), []string{"/api"}, env, "path /api"},
		"wrong token":   {"other", string(ca), nil, env, "!401"},
		"no authority":  {"secret", "none", nil, env, "!no certificate"},
		"not in a pod":  {"secret", string(ca), nil, func(string) string { return "" }, "!not set"},
		"missing token": {"", string(ca), nil, env, "!read token"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.token != "" {
				if err := os.WriteFile(filepath.Join(dir, "token"), []byte(tc.token), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte(tc.ca), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err := run(tc.args, tc.env, dir, &out)
			if want, fails := strings.CutPrefix(tc.says, "!"); fails != (err != nil) {
				t.Fatalf("error %v", err)
			} else if fails && !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q", err, want)
			} else if !fails && !strings.Contains(out.String(), want) {
				t.Errorf("said %q, want %q", out.String(), want)
			}
		})
	}
}
