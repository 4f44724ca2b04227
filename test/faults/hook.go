package faults

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Hook is an admission webhook that the API server asks before an eviction.
type Hook struct {
	url    string
	ca     []byte
	server *http.Server
	ended  chan error
}

// ServeHook serves the handler over TLS until Close, which closes the listener too.
func ServeHook(l net.Listener, handler http.Handler) (*Hook, error) {
	cert, ca, err := certificate("spillway-webhooks", l.Addr())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve webhook: %w", err), l.Close())
	}
	h := &Hook{url: "https://" + l.Addr().String(), ca: ca, ended: make(chan error, 1)}
	h.server = &http.Server{
		Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
	}
	go func() { h.ended <- h.server.ServeTLS(l, "", "") }()
	return h, nil
}

// URL is where the API server reaches the webhook.
func (h *Hook) URL() string { return h.url }

// Close cuts all connections and waits for the end of the server.
func (h *Hook) Close() error {
	err := h.server.Close()
	if ended := <-h.ended; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	return err
}

// Manifest is a configuration by which the API server asks the webhook at the URL about every eviction in the namespaces with
// the label, key: value. Without an answer of the webhook it refuses the eviction.
func (h *Hook) Manifest(name, url, key, value string) string {
	return fmt.Sprintf(`---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: %[1]s}
webhooks:
- name: %[1]s.evictions.test
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 10
  namespaceSelector: {matchLabels: {%[3]s: %[4]s}}
  rules: [{apiGroups: [""], apiVersions: [v1], resources: [pods/eviction], operations: [CREATE]}]
  clientConfig: {url: %[2]q, caBundle: %[5]s}
`, name, url, key, value, base64.StdEncoding.EncodeToString(h.ca))
}

// Review is what the API server asks a webhook.
type Review struct {
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	User      struct {
		Name string `json:"username"`
	} `json:"userInfo"`
	DryRun bool `json:"dryRun"`
}

// Admission answers every review with what decide returns: 200 allows, any other code refuses with the message, 0 closes the
// connection without an answer. decide may be called from several goroutines.
func Admission(decide func(Review) (code int, message string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var review struct {
			Request Review `json:"request"`
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		code, message := decide(review.Request)
		if code == 0 {
			panic(http.ErrAbortHandler)
		}
		response := map[string]any{"uid": review.Request.UID, "allowed": code == http.StatusOK}
		if code != http.StatusOK {
			response["status"] = map[string]any{"code": code, "message": message}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}) // a client that is gone needs none
	}
}
