package faults

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// rig is a server, the proxy in front of it, and a client of the proxy.
type rig struct {
	proxy  *Proxy
	client *http.Client
	served atomic.Int32 // evictions
}

func newRig(t *testing.T) *rig {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	r := &rig{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Query().Get("watch") != "" {
			stream(w, req)
			return
		}
		if Eviction(req) {
			r.served.Add(1)
			w.Header().Set("X-From", "server")
			w.WriteHeader(http.StatusCreated)
		}
		body, _ := io.ReadAll(req.Body)
		_, _ = io.WriteString(w, req.URL.RequestURI()+" "+req.Header.Get("Authorization")+" "+string(body))
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	var err error
	if r.proxy, err = Start(Options{Target: server.URL, RootCAs: roots}); err != nil {
		t.Fatal(err)
	}
	own := x509.NewCertPool()
	if !own.AppendCertsFromPEM(r.proxy.CA()) {
		t.Fatal("no certificate in CA()")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: own}, ForceAttemptHTTP2: true}
	r.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := r.proxy.Close(); err != nil || r.proxy.Close() != nil {
			t.Errorf("close: %v", err)
		}
		server.Close()
		goleak.VerifyNone(t, leaks)
	})
	return r
}

// evict posts one eviction.
func (r *rig) evict(ctx context.Context) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.proxy.URL()+"/api/v1/namespaces/a/pods/b/eviction?dryRun=All", strings.NewReader("body"))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer token")
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

func TestFaults(t *testing.T) {
	released := make(chan struct{})
	close(released)
	for _, tc := range []struct {
		name   string
		fault  Fault
		code   int // 0: no answer
		body   string
		served int32
	}{
		{"pass", Fault{}, 201, "/api/v1/namespaces/a/pods/b/eviction?dryRun=All Bearer token body", 1},
		{"answer", Fault{Answer: &Answer{Code: 429, Header: http.Header{"Retry-After": {"7"}}, Body: "busy"}}, 429, "busy", 0},
		{"held and released", Fault{Hold: released, HoldAnswer: released}, 201, "/api/v1/namespaces/a/pods/b/eviction?dryRun=All Bearer token body", 1},
		{"cut before", Fault{Cut: CutBefore}, 0, "", 0},
		{"cut after", Fault{Cut: CutAfter}, 0, "", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.proxy.Set(tc.fault)
			code, body, err := r.evict(t.Context())
			if code != tc.code || body != tc.body || (err == nil) != (tc.code != 0) {
				t.Errorf("answer %d %q, %v; want %d %q", code, body, err, tc.code, tc.body)
			}
			if n := r.served.Load(); n != tc.served {
				t.Errorf("the server saw %d requests, want %d", n, tc.served)
			}
			seen := r.proxy.Seen()
			if len(seen) != 1 || seen[0].Body != "body" || seen[0].Forwarded.IsZero() != (tc.served == 0) || (seen[0].Code == 201) != (tc.served == 1) {
				t.Errorf("record %+v", seen)
			}
			r.proxy.Set(Fault{})
			if code, _, err := r.evict(t.Context()); code != 201 {
				t.Errorf("afterwards %d, %v", code, err)
			}
			r.proxy.Forget()
			if got := r.proxy.Seen(); len(got) != 0 {
				t.Errorf("not forgotten: %+v", got)
			}
		})
	}
}

// A client that hangs up while its request is held: before it was passed on the server never hears of it, afterwards it has.
func TestHangUpWhileHeld(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fault  Fault
		served int32
	}{
		{"before", Fault{Hold: make(chan struct{})}, 0},
		{"after", Fault{HoldAnswer: make(chan struct{})}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.proxy.Set(tc.fault)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if code, _, err := r.evict(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("answer %d, %v", code, err)
			}
			limit, stop := context.WithTimeout(t.Context(), 10*time.Second)
			defer stop()
			seen, err := r.proxy.Await(limit, func(s []Request) bool { return len(s) == 1 && s[0].HungUp })
			if err != nil {
				t.Fatal(err)
			}
			if n := r.served.Load(); n != tc.served || seen[0].Forwarded.IsZero() != (tc.served == 0) {
				t.Errorf("the server saw %d requests, want %d; record %+v", n, tc.served, seen)
			}
		})
	}
}

// What no fault applies to passes and is not recorded.
func TestOthersPass(t *testing.T) {
	r := newRig(t)
	r.proxy.Set(Fault{Cut: CutBefore})
	resp, err := r.client.Get(r.proxy.URL() + "/version?x=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.ProtoMajor != 2 || resp.StatusCode != 200 || !strings.HasPrefix(string(text), "/version?x=1 ") || len(r.proxy.Seen()) != 0 {
		t.Errorf("%s %d %q, record %+v; want HTTP/2 and the server's answer", resp.Proto, resp.StatusCode, text, r.proxy.Seen())
	}
}

func TestStartRefuses(t *testing.T) {
	for _, o := range []Options{{}, {Target: "http://127.0.0.1"}, {Target: "https://127.0.0.1"}} {
		if p, err := Start(o); err == nil {
			p.Close()
			t.Errorf("%+v was accepted", o)
		}
	}
}
