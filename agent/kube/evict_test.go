package kube

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/agent/policy"
)

var testEvict = EvictRequest{Namespace: "shop", Name: "cart-0", UID: "c0ffee"}

// The bodies of this table are those of API server 1.36 (kubernetes/pkg/registry/core/pod/storage/eviction.go and what
// its filters write), sent over real TLS.
func TestEvictAnswers(t *testing.T) {
	status := func(code int, reason, message, details string) string {
		if details == "" {
			details = "{}"
		}
		return fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":%q,"reason":%q,"details":%s,"code":%d}`,
			message, reason, details, code)
	}
	const success = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","code":201}`
	const violates = "Cannot evict pod as it would violate the pod's disruption budget."
	for _, tc := range []struct {
		name   string
		code   int
		header http.Header
		body   string
		want   policy.Answer
	}{
		{name: "created", code: 201, body: success, want: policy.Answer{Verb: policy.Accepted, Code: 201}},
		{name: "ok", code: 200, body: strings.Replace(success, "201", "200", 1), want: policy.Answer{Verb: policy.Accepted, Code: 200}},
		{name: "created, wrong content type", code: 201, header: http.Header{"Content-Type": {"text/plain;;"}}, body: success,
			want: policy.Answer{Verb: policy.Accepted, Code: 201}},
		{name: "202", code: 202, body: success, want: policy.Answer{Verb: policy.Unknown, Code: 202}},
		{name: "created, empty body", code: 201, want: policy.Answer{Verb: policy.Unknown, Code: 201, Message: "Created"}},
		{name: "created, not JSON", code: 201, body: "<html>hello</html>", want: policy.Answer{Verb: policy.Unknown, Code: 201, Message: "<html>hello</html>"}},
		{name: "created, truncated JSON", code: 201, body: success[:40], want: policy.Answer{Verb: policy.Unknown, Code: 201, Message: success[:40]}},
		{name: "created, another kind", code: 201, body: `{"kind":"Pod"}`, want: policy.Answer{Verb: policy.Unknown, Code: 201, Message: `{"kind":"Pod"}`}},
		{name: "created, Status without status", code: 201, body: `{"kind":"Status"}`, want: policy.Answer{Verb: policy.Unknown, Code: 201}},
		{name: "redirect", code: 307, header: http.Header{"Location": {"/elsewhere"}}, want: policy.Answer{Verb: policy.Unknown, Code: 307, Message: "Temporary Redirect"}},

		{name: "pod not found", code: 404, body: status(404, "NotFound", `pods "cart-0" not found`, `{"name":"cart-0","kind":"pods"}`),
			want: policy.Answer{Verb: policy.Gone, Code: 404, Message: `pods "cart-0" not found`}},
		{name: "no such API", code: 404, body: status(404, "NotFound", "the server could not find the requested resource", ""),
			want: policy.Answer{Verb: policy.Blocked, Code: 404, Message: "the server could not find the requested resource"}},
		{name: "404 of a proxy", code: 404, body: "404 page not found\n", want: policy.Answer{Verb: policy.Blocked, Code: 404, Message: "404 page not found\n"}},

		{name: "conflict on the UID", code: 409, body: status(409, "Conflict", `Operation cannot be fulfilled on Pod "cart-0": the UID in the precondition (c0ffee) does not match the UID in record (beef). The object might have been deleted and then recreated`, `{"name":"cart-0","kind":"Pod"}`),
			want: policy.Answer{Verb: policy.Gone, Code: 409, Message: `Operation cannot be fulfilled on Pod "cart-0": the UID in the precondition (c0ffee) does not match the UID in record (beef). The object might have been deleted and then recreated`}},
		{name: "conflict on the UID, from storage", code: 409, body: status(409, "Conflict", "Precondition failed: UID in precondition: c0ffee, UID in object meta: beef", ""),
			want: policy.Answer{Verb: policy.Gone, Code: 409, Message: "Precondition failed: UID in precondition: c0ffee, UID in object meta: beef"}},
		{name: "other conflict", code: 409, body: status(409, "Conflict", "the ResourceVersion in the precondition (1) does not match the ResourceVersion in record (2)", ""),
			want: policy.Answer{Verb: policy.Backoff, Code: 409, Message: "the ResourceVersion in the precondition (1) does not match the ResourceVersion in record (2)"}},
		{name: "409 of a proxy that echoes the words", code: 409, body: "UID in precondition", want: policy.Answer{Verb: policy.Backoff, Code: 409, Message: "UID in precondition"}},

		{name: "budget", code: 429, body: status(429, "TooManyRequests", violates, `{"causes":[{"reason":"DisruptionBudget","message":"The disruption budget cart needs 2 healthy pods and has 2 currently"}]}`),
			want: policy.Answer{Verb: policy.Budget, Code: 429, Message: violates + " The disruption budget cart needs 2 healthy pods and has 2 currently"}},
		{name: "budget that lags", code: 429, header: http.Header{"Retry-After": {"10"}},
			body: status(429, "TooManyRequests", violates, `{"causes":[{"reason":"DisruptionBudget","message":"The disruption budget cart is still being processed by the server."}],"retryAfterSeconds":10}`),
			want: policy.Answer{Verb: policy.Budget, Code: 429, RetryAfter: 10 * time.Second, Message: violates + " The disruption budget cart is still being processed by the server."}},
		{name: "overload, plain text", code: 429, header: http.Header{"Retry-After": {"1"}, "Content-Type": {"text/plain"}}, body: "Too many requests, please try again later.\n",
			want: policy.Answer{Verb: policy.Backoff, Code: 429, RetryAfter: time.Second, Message: "Too many requests, please try again later.\n"}},
		{name: "overload, absurd delay", code: 429, header: http.Header{"Retry-After": {"-5"}}, want: policy.Answer{Verb: policy.Backoff, Code: 429, Message: "Too Many Requests"}},
		{name: "overload, date", code: 429, header: http.Header{"Retry-After": {"Fri, 31 Dec 1999 23:59:59 GMT"}}, want: policy.Answer{Verb: policy.Backoff, Code: 429, Message: "Too Many Requests"}},

		{name: "two budgets", code: 500, body: status(500, "", "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.", ""),
			want: policy.Answer{Verb: policy.Blocked, Code: 500, Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."}},
		{name: "two budgets, as a failure in HTTP 201", code: 201, body: status(500, "", "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.", ""),
			want: policy.Answer{Verb: policy.Blocked, Code: 500, Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."}},
		{name: "internal error", code: 500, body: status(500, "InternalError", "etcdserver: request timed out", ""),
			want: policy.Answer{Verb: policy.Backoff, Code: 500, Message: "etcdserver: request timed out"}},
		{name: "unavailable", code: 503, header: http.Header{"Retry-After": {"30"}}, body: "apiserver is shutting down",
			want: policy.Answer{Verb: policy.Backoff, Code: 503, RetryAfter: 30 * time.Second, Message: "apiserver is shutting down"}},
		{name: "gateway timeout", code: 504, body: status(504, "Timeout", `Timeout: couldn't update PodDisruptionBudget "cart" due to conflicts`, `{"retryAfterSeconds":10}`),
			want: policy.Answer{Verb: policy.Backoff, Code: 504, RetryAfter: 10 * time.Second, Message: `Timeout: couldn't update PodDisruptionBudget "cart" due to conflicts`}},
		{name: "failure in HTTP 200 with 429", code: 200, body: status(429, "TooManyRequests", violates, `{"causes":[{"reason":"DisruptionBudget"}]}`),
			want: policy.Answer{Verb: policy.Budget, Code: 429, Message: violates}},

		{name: "unauthorized", code: 401, body: status(401, "Unauthorized", "Unauthorized", ""), want: policy.Answer{Verb: policy.Unauthorized, Code: 401, Message: "Unauthorized"}},
		{name: "forbidden", code: 403, body: status(403, "Forbidden", `pods "cart-0" is forbidden: cannot create resource "pods/eviction"`, ""),
			want: policy.Answer{Verb: policy.Blocked, Code: 403, Message: `pods "cart-0" is forbidden: cannot create resource "pods/eviction"`}},
		{name: "invalid", code: 422, body: status(422, "Invalid", "not by policy", ""), want: policy.Answer{Verb: policy.Blocked, Code: 422, Message: "not by policy"}},
		{name: "bad request", code: 400, body: status(400, "BadRequest", "no", ""), want: policy.Answer{Verb: policy.Blocked, Code: 400, Message: "no"}},
		{name: "server-side request timeout", code: 408, want: policy.Answer{Verb: policy.Backoff, Code: 408, Message: "Request Timeout"}},

		{name: "giant success", code: 201, body: `{"metadata":{"resourceVersion":"` + strings.Repeat("1", 8<<20) + `"},` + success[1:],
			want: policy.Answer{Verb: policy.Unknown, Code: 201, Message: `{"metadata":{"resourceVersion":"` + strings.Repeat("1", 1024-32)}},
		{name: "giant refusal", code: 403, body: strings.Repeat("é", 4<<20), want: policy.Answer{Verb: policy.Blocked, Code: 403, Message: strings.Repeat("é", 512)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var calls atomic.Int32
			s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				w.Header().Set("Content-Type", "application/json")
				for k, v := range tc.header {
					w.Header()[k] = v
				}
				w.WriteHeader(tc.code)
				_, _ = io.WriteString(w, tc.body)
			}))
			c := clientOf(t, s)
			before := time.Now()
			got := c.Evict(context.Background(), testEvict)
			if got.SentAt.Before(before) || got.SentAt.After(time.Now()) {
				t.Errorf("sent at %v, want between %v and now", got.SentAt, before)
			}
			got.SentAt = time.Time{}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if n := calls.Load(); n != 1 {
				t.Errorf("%d calls, want 1", n)
			}
		})
	}
}

// What the server sees: path, query, credentials, body.
func TestEvictRequest(t *testing.T) {
	second := time.Second
	for _, tc := range []struct {
		name  string
		req   EvictRequest
		query string
		body  string
	}{
		{"plain", testEvict, "",
			`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"labels":{"spillway/agent":"true"},"name":"cart-0","namespace":"shop"},"deleteOptions":{"preconditions":{"uid":"c0ffee"}}}`},
		{"grace", EvictRequest{Namespace: "shop", Name: "cart-0", UID: "c0ffee", Grace: &second}, "",
			`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"labels":{"spillway/agent":"true"},"name":"cart-0","namespace":"shop"},"deleteOptions":{"gracePeriodSeconds":1,"preconditions":{"uid":"c0ffee"}}}`},
		{"dry run", EvictRequest{Namespace: "shop", Name: "cart-0", UID: "c0ffee", DryRun: true}, "dryRun=All",
			`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"labels":{"spillway/agent":"true"},"name":"cart-0","namespace":"shop"},"deleteOptions":{"dryRun":["All"],"preconditions":{"uid":"c0ffee"}}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != "POST" || r.URL.Path != "/api/v1/namespaces/shop/pods/cart-0/eviction" || r.URL.RawQuery != tc.query {
					t.Errorf("request %s %s", r.Method, r.URL)
				}
				if got := r.Header.Get("Authorization"); got != "Bearer "+testToken {
					t.Errorf("authorization %q", got)
				}
				if got := r.Header.Get("Content-Type") + " " + r.Header.Get("User-Agent"); got != "application/json spillway" {
					t.Errorf("headers %q", got)
				}
				raw, _ := io.ReadAll(r.Body)
				var got, want any
				if json.Unmarshal(raw, &got) != nil || json.Unmarshal([]byte(tc.body), &want) != nil {
					t.Errorf("body %s", raw)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("body (-want +got):\n%s", diff)
				}
				if len(raw) > 512 {
					t.Errorf("body of %d bytes", len(raw))
				}
				writeJSON(w, 201, map[string]any{"kind": "Status", "status": "Success"})
			}))
			if got := clientOf(t, s).Evict(context.Background(), tc.req); got.Verb != policy.Accepted {
				t.Errorf("answer %+v", got)
			}
		})
	}
}

func TestEvictNotSent(t *testing.T) {
	grace := func(d time.Duration) *time.Duration { return &d }
	s, _ := startTLS(t, "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") }))
	c := clientOf(t, s)
	for _, tc := range []struct {
		name string
		req  EvictRequest
		want string
	}{
		{"no uid", EvictRequest{Namespace: "a", Name: "b"}, "not sent: uid is empty"},
		{"no name", EvictRequest{Namespace: "a", UID: "1"}, "not sent: namespace or name is empty"},
		{"no namespace", EvictRequest{Name: "a", UID: "1"}, "not sent: namespace or name is empty"},
		{"grace 0", EvictRequest{Namespace: "a", Name: "b", UID: "1", Grace: grace(0)}, "not sent: grace 0s: want whole seconds, at least 1"},
		{"negative grace", EvictRequest{Namespace: "a", Name: "b", UID: "1", Grace: grace(-time.Second)}, "not sent: grace -1s: want whole seconds, at least 1"},
		{"broken grace", EvictRequest{Namespace: "a", Name: "b", UID: "1", Grace: grace(1500 * time.Millisecond)}, "not sent: grace 1.5s: want whole seconds, at least 1"},
		{"a name that is a path", EvictRequest{Namespace: "a", Name: "b/../c", UID: "1"}, `not sent: invalid resource name "b/../c": [may not contain '/']`},
		{"a namespace that is a path", EvictRequest{Namespace: "..", Name: "b", UID: "1"}, `not sent: invalid namespace "..": [may not be '..']`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := policy.Answer{Verb: policy.Blocked, Message: tc.want}
			if diff := cmp.Diff(want, c.Evict(context.Background(), tc.req)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// The shipped time-out: a server that answers too late leaves the outcome unknown after 3 s, not later.
func TestEvictTimeout(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		begin func(http.ResponseWriter)
	}{
		{"no answer", func(http.ResponseWriter) {}},
		{"headers only", func(w http.ResponseWriter) { w.WriteHeader(201); w.(http.Flusher).Flush() }},
		{"half a body", func(w http.ResponseWriter) {
			w.WriteHeader(201)
			_, _ = io.WriteString(w, `{"kind":"Status","status":"Succ`)
			w.(http.Flusher).Flush()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			release := make(chan struct{})
			s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tc.begin(w)
				<-release
			}))
			defer close(release)
			c := clientOf(t, s)
			began := time.Now()
			got := c.Evict(context.Background(), testEvict)
			took := time.Since(began)
			if got.Verb != policy.Unknown || got.Message == "" {
				t.Errorf("answer %+v", got)
			}
			if took < 2900*time.Millisecond || took > 4*time.Second {
				t.Errorf("took %v, want 3 s", took)
			}
		})
	}
}

func TestEvictConnectionCut(t *testing.T) {
	for _, tc := range []struct {
		name, write string
		code        int
	}{
		{"before the answer", "", 0},
		{"within the headers", "HTTP/1.1 201 Cre", 0},
		{"after the headers", "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n", 201},
		{"within the body", "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n" + `{"kind":"Status","status":"Success"}`, 201},
		{"within a chunk", "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + `{"kind":"Status","status":"Success"}`, 201},
		{"not HTTP", "SSH-2.0-OpenSSH_9.6\r\n", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var calls atomic.Int32
			addr, ca := rawTLS(t, func(conn net.Conn) {
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				calls.Add(1)
				_, _ = io.WriteString(conn, tc.write)
			})
			c, err := New(Options{Kubeconfig: writeKubeconfig(t, "https://"+addr, ca), NodeName: testNode})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got := c.Evict(context.Background(), testEvict)
			if got.Verb != policy.Unknown || got.Code != tc.code || got.Message == "" {
				t.Errorf("answer %+v", got)
			}
			if n := calls.Load(); n != 1 {
				t.Errorf("%d calls, want 1", n)
			}
		})
	}
}

// rawTLS is listenTLS with a certificate of its own, and that as CA.
func rawTLS(t *testing.T, serve func(net.Conn)) (addr string, ca []byte) {
	t.Helper()
	s, _ := startTLS(t, "", http.NotFoundHandler()) // for its certificate
	addr, _ = listenTLS(t, s.TLS.Certificates[0], serve)
	return addr, caOf(s)
}

// listenTLS serves raw TLS connections, HTTP/1.1 only, and closes each after serve. stop waits for all; the
// test's end does so too.
func listenTLS(t *testing.T, cert tls.Certificate, serve func(net.Conn)) (addr string, stop func()) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				serve(conn)
			})
		}
	})
	stop = sync.OnceFunc(func() { l.Close(); wg.Wait() })
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// When no connection came about nothing can have happened: Backoff, not Unknown.
func TestEvictNotConnected(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		s, stop := startTLS(t, "", http.NotFoundHandler())
		c := clientOf(t, s)
		stop()
		got := c.Evict(context.Background(), testEvict)
		if got.Verb != policy.Backoff || got.Code != 0 || !strings.Contains(got.Message, "connection refused") {
			t.Errorf("answer %+v", got)
		}
	})
	t.Run("silent", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, never speaks TLS
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		s, _ := startTLS(t, "", http.NotFoundHandler())
		c, err := New(Options{Kubeconfig: writeKubeconfig(t, "https://"+l.Addr().String(), caOf(s)), NodeName: testNode})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.evictTimeout = 200 * time.Millisecond
		if got := c.Evict(context.Background(), testEvict); got.Verb != policy.Backoff || got.Code != 0 {
			t.Errorf("answer %+v", got)
		}
	})
	t.Run("certificate of another CA", func(t *testing.T) {
		s, _ := startTLS(t, "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") }))
		c, err := New(Options{Kubeconfig: writeKubeconfig(t, s.URL, newCA(t).pem), NodeName: testNode})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got := c.Evict(context.Background(), testEvict)
		if got.Verb != policy.Backoff || got.Code != 0 || !strings.Contains(got.Message, "certificate signed by unknown authority") {
			t.Errorf("answer %+v", got)
		}
		if err := c.Warm(context.Background()); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("Warm: %v", err)
		}
	})
}

// A redirect must not carry the token to another host.
func TestEvictRedirectKeepsToken(t *testing.T) {
	other, _ := startTLS(t, "", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("followed to %s with authorization %q", r.URL, r.Header.Get("Authorization"))
	}))
	s, _ := startTLS(t, "", http.RedirectHandler(other.URL, http.StatusFound))
	c := clientOf(t, s)
	if got := c.Evict(context.Background(), testEvict); got.Verb != policy.Unknown || got.Code != 302 {
		t.Errorf("answer %+v", got)
	}
	if _, err := c.Node(context.Background()); err == nil {
		t.Error("Node followed a redirect")
	}
}

func TestWarmKeepsOneConnection(t *testing.T) {
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	var versions atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/version" {
			versions.Add(1)
			writeJSON(w, 200, map[string]string{"gitVersion": "v1.36.3"})
			return
		}
		writeJSON(w, 201, map[string]any{"kind": "Status", "status": "Success"})
	}))
	s.EnableHTTP2 = true
	s.Config.ConnState = func(c net.Conn, _ http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		conns[c] = true
	}
	s.StartTLS()
	defer s.Close()
	c := clientOf(t, s)
	if err := c.Warm(context.Background()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := c.Evict(context.Background(), testEvict); got.Verb != policy.Accepted {
			t.Fatalf("answer %+v", got)
		}
		if err := c.Warm(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if n := versions.Load(); n != 1 {
		t.Errorf("/version was asked %d times for a connection in use, want once", n)
	}
	old := time.Now().Add(-2 * warmFor)
	c.evictUsed.Store(&old)
	if err := c.Warm(context.Background()); err != nil || versions.Load() != 2 {
		t.Errorf("an idle connection: %v, /version was asked %d times, want twice", err, versions.Load())
	}
	mu.Lock()
	if len(conns) != 1 {
		t.Errorf("%d connections, want 1", len(conns))
	}
	mu.Unlock()
	if err := c.Close(); err != nil || c.Close() != nil {
		t.Error("Close")
	}
	if got := c.Evict(context.Background(), testEvict); got.Verb != policy.Accepted {
		t.Errorf("after Close: %+v", got)
	}
}

func TestWarmRefused(t *testing.T) {
	s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeStatus(w, 401, "Unauthorized", "Unauthorized")
	}))
	err := clientOf(t, s).Warm(context.Background())
	if err == nil || err.Error() != "warm eviction connection: Unauthorized" {
		t.Errorf("Warm: %v", err)
	}
}

// A hundred evictions at once: no client-side limiter may stretch them (client-go's default would take 18 s).
func TestEvictIsNotLimited(t *testing.T) {
	s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, 201, map[string]any{"kind": "Status", "status": "Success"})
	}))
	c := clientOf(t, s)
	began := time.Now()
	for range 100 {
		if got := c.Evict(context.Background(), testEvict); got.Verb != policy.Accepted {
			t.Fatalf("answer %+v", got)
		}
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("100 evictions took %v", took)
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(201, "", []byte(`{"kind":"Status","status":"Success"}`))
	f.Add(201, "", []byte(`{"kind":"Status","status":"Failure","code":500}`))
	f.Add(429, "10", []byte(`{"kind":"Status","details":{"causes":[{"reason":"DisruptionBudget"}],"retryAfterSeconds":3}}`))
	f.Add(404, "", []byte(`{"kind":"Status","details":{"kind":"pods"}}`))
	f.Add(500, "99999999999999999999", []byte("\xff\xfe"))
	f.Fuzz(func(t *testing.T, code int, retry string, body []byte) {
		a := classify(code, retry, body)
		if len(a.Message) > maxMessage || a.RetryAfter < 0 {
			t.Fatalf("answer %+v", a)
		}
		var st struct{ Kind, Status string }
		ok := json.Unmarshal(body, &st) == nil && st.Kind == "Status" && st.Status == "Success"
		if (a.Verb == policy.Accepted) != (ok && (code == 200 || code == 201)) {
			t.Fatalf("code %d, body %q: %+v", code, body, a)
		}
		if code >= 500 && code < 600 && a.Verb != policy.Backoff && a.Verb != policy.Blocked {
			t.Fatalf("code %d: %+v", code, a)
		}
	})
}

func BenchmarkEvict(b *testing.B) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"kind":"Status","status":"Success"}`)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	dir := b.TempDir()
	path := dir + "/kubeconfig"
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q, certificate-authority: %s/ca}}]\n"+
		"users: [{name: u, user: {token: t}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n", s.URL, dir)
	if os.WriteFile(dir+"/ca", caOf(s), 0o600) != nil || os.WriteFile(path, []byte(text), 0o600) != nil {
		b.Fatal("write kubeconfig")
	}
	c, err := New(Options{Kubeconfig: path, NodeName: testNode})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if a := c.Evict(context.Background(), testEvict); a.Verb != policy.Accepted {
			b.Fatal(a)
		}
	}
}
