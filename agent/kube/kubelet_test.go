package kube

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const configzBody = `{"kubeletconfig":{"enableServer":true,"cgroupDriver":"systemd","cgroupRoot":"/x",
"evictionHard":{"imagefs.available":"15%","memory.available":"500Mi"},"evictionSoft":{"memory.available":"10%"},
"evictionSoftGracePeriod":{"memory.available":"1m30s"},"mergeDefaultEvictionSettings":true,
"systemReserved":{"cpu":"200m","memory":"1Gi"},"kubeReserved":{"memory":"512Mi"},"enforceNodeAllocatable":["pods","kube-reserved"],
"kind":"KubeletConfiguration","apiVersion":"kubelet.config.k8s.io/v1beta1"}}`

// kubelet serves h with cert and counts what reaches it.
type kubelet struct {
	server   *httptest.Server
	node     Node
	requests atomic.Int32
}

func startKubelet(t *testing.T, cert tls.Certificate, h http.HandlerFunc) *kubelet {
	t.Helper()
	k := &kubelet{}
	k.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.requests.Add(1)
		h(w, r)
	}))
	k.server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	k.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	k.server.StartTLS()
	t.Cleanup(func() { k.server.CloseClientConnections(); k.server.Close() })
	k.node = nodeAt(t, k.server.Listener.Addr().String())
	return k
}

func agentWithCA(t *testing.T, ca []byte) *Client {
	t.Helper()
	c, err := New(Options{Kubeconfig: writeKubeconfig(t, "https://127.0.0.1:1", ca), NodeName: testNode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestKubeletConfigz(t *testing.T) {
	noLeaks(t)
	ca := newCA(t)
	k := startKubelet(t, ca.serving(t, time.Now().Add(time.Hour), "127.0.0.1"), func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" || r.URL.Path != "/configz" || r.Header.Get("Authorization") != "Bearer "+testToken {
			t.Errorf("request %s %s, authorization %q", r.Method, r.URL, r.Header.Get("Authorization"))
		}
		_, _ = io.WriteString(w, configzBody)
	})
	want := KubeletConfig{
		Source:                       "configz",
		EvictionHard:                 map[string]string{"imagefs.available": "15%", "memory.available": "500Mi"},
		EvictionSoft:                 map[string]string{"memory.available": "10%"},
		EvictionSoftGracePeriod:      map[string]time.Duration{"memory.available": 90 * time.Second},
		EnforceNodeAllocatable:       []string{"pods", "kube-reserved"},
		SystemReserved:               map[string]string{"cpu": "200m", "memory": "1Gi"},
		KubeReserved:                 map[string]string{"memory": "512Mi"},
		CgroupDriver:                 "systemd",
		CgroupRoot:                   "/x",
		MergeDefaultEvictionSettings: true,
	}
	c := agentWithCA(t, ca.pem)
	got, err := c.KubeletConfigz(context.Background(), k.node)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	// A second address answers when the first does not.
	two := k.node
	two.InternalIPs = []string{"127.0.0.2", "127.0.0.1"}
	if _, err := c.KubeletConfigz(context.Background(), two); err != nil {
		t.Errorf("second address: %v", err)
	}
}

// Our token must reach nobody whose certificate does not verify, whatever is wrong with it.
func TestKubeletConfigzTokenStaysHome(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	for _, tc := range []struct {
		name string
		cert tls.Certificate
		want string
	}{
		{"self-signed, as a kubelet is by default", selfSigned(t), "failed to verify certificate"},
		{"another CA", other.serving(t, time.Now().Add(time.Hour), "127.0.0.1"), "certificate signed by unknown authority"},
		{"another address", ca.serving(t, time.Now().Add(time.Hour), "10.0.0.1"), "not 127.0.0.1"},
		{"no address", ca.serving(t, time.Now().Add(time.Hour)), "cannot validate certificate for 127.0.0.1"},
		{"expired", ca.serving(t, time.Now().Add(-time.Hour), "127.0.0.1"), "certificate has expired"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var connections, bytes atomic.Int64
			addr, stop := listenTLS(t, tc.cert, func(conn net.Conn) {
				connections.Add(1)
				n, _ := io.Copy(io.Discard, conn) // what is left after decryption
				bytes.Add(n)
			})
			_, err := agentWithCA(t, ca.pem).KubeletConfigz(context.Background(), nodeAt(t, addr))
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "node "+testNode) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			stop()
			if connections.Load() != 1 || bytes.Load() != 0 {
				t.Errorf("%d connections, %d bytes of requests; want 1 and none", connections.Load(), bytes.Load())
			}
		})
	}
	// The same trap does see the token of a client that trusts the certificate.
	var sent atomic.Int64
	addr, _ := listenTLS(t, ca.serving(t, time.Now().Add(time.Hour), "127.0.0.1"), func(conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err == nil && req.Header.Get("Authorization") == "Bearer "+testToken {
			sent.Add(1)
		}
	})
	if _, err := agentWithCA(t, ca.pem).KubeletConfigz(context.Background(), nodeAt(t, addr)); err == nil || sent.Load() != 1 {
		t.Errorf("trusted: error %v, %d tokens", err, sent.Load())
	}
}

func nodeAt(t *testing.T, addr string) Node {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return Node{Name: testNode, InternalIPs: []string{host}, KubeletPort: n}
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	own := newCA(t)
	return tls.Certificate{Certificate: [][]byte{own.cert.Raw}, PrivateKey: own.key}
}

func TestKubeletConfigzFails(t *testing.T) {
	ca := newCA(t)
	cert := ca.serving(t, time.Now().Add(time.Hour), "127.0.0.1")
	for _, tc := range []struct {
		name string
		h    http.HandlerFunc
		want string
	}{
		{"unauthorized", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, "401 Unauthorized: our service account needs the right get on nodes/configz"},
		{"forbidden", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, "403 Forbidden: our service account needs the right get on nodes/configz"},
		{"not found", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, "/configz: 404 Not Found"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "/configz: 302 Found"},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, "invalid character"},
		{"no kubeletconfig", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"other":{}}`) }, "kubeletconfig: missing"},
		{"wrong type", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"kubeletconfig":{"evictionHard":{"memory.available":5}}}`)
		}, "kubeletconfig: evictionHard memory.available: a number, want a string"},
		{"malformed threshold", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"kubeletconfig":{"evictionHard":{"memory.available":"5 apples"}}}`)
		}, `kubeletconfig: evictionHard memory.available: quantity "5 apples"`},
		{"malformed reservation", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"kubeletconfig":{"kubeReserved":{"memory":"-1Gi"}}}`)
		}, `kubeletconfig: kubeReserved memory "-1Gi": negative`},
		{"giant", func(w http.ResponseWriter, _ *http.Request) {
			for range 3 << 10 {
				_, _ = io.WriteString(w, strings.Repeat(" ", 1024))
			}
		}, "more than 1048576 bytes"},
		{"slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "context deadline exceeded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := startKubelet(t, cert, tc.h)
			began := time.Now()
			got, err := agentWithCA(t, ca.pem).KubeletConfigz(context.Background(), k.node)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want %q (config %+v)", err, tc.want, got)
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestKubeletConfigzRefusesToTry(t *testing.T) {
	ca := newCA(t)
	c := agentWithCA(t, ca.pem)
	k := startKubelet(t, ca.serving(t, time.Now().Add(time.Hour), "127.0.0.1"), func(http.ResponseWriter, *http.Request) { t.Error("a request arrived") })
	edit := func(from, to string) *Client {
		path := writeKubeconfig(t, "https://127.0.0.1:1", ca.pem)
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), from) {
			t.Fatalf("no %q in the kubeconfig", from)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(raw), from, to, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := New(Options{Kubeconfig: path, NodeName: testNode})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for _, tc := range []struct {
		name string
		c    *Client
		node Node
		want string
	}{
		{"no address", c, Node{Name: testNode, KubeletPort: 10250}, "no InternalIP or no kubelet port"},
		{"no port", c, Node{Name: testNode, InternalIPs: []string{"127.0.0.1"}}, "no InternalIP or no kubelet port"},
		{"verification skipped", edit("certificate-authority: ca.crt", "insecure-skip-tls-verify: true"), k.node, "skips TLS verification"},
		{"no CA", edit(", certificate-authority: ca.crt", ""), k.node, "no cluster CA is configured"},
		{"no token", edit("token: "+testToken, "username: a, password: b"), k.node, "no token is configured"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := tc.c.KubeletConfigz(context.Background(), tc.node); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

// The kubelet leaves out what is empty after its own defaults: nothing may be filled in again.
func TestConfigzAbsentMeansNone(t *testing.T) {
	k, err := parseConfigz([]byte(`{"kubeletconfig":{"cgroupDriver":"cgroupfs","evictionHard":{"nodefs.available":"10%"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.MemoryThresholds()
	if err != nil || len(got) != 0 || k.EnforceNodeAllocatable != nil {
		t.Errorf("thresholds %+v, enforce %v, error %v", got, k.EnforceNodeAllocatable, err)
	}
}

func FuzzParseConfigz(f *testing.F) {
	f.Add([]byte(configzBody))
	f.Add([]byte(`{"kubeletconfig":{"evictionHard":null,"enforceNodeAllocatable":[1]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		k, err := parseConfigz(body)
		if err != nil {
			return
		}
		if _, err := k.MemoryThresholds(); err != nil {
			t.Fatalf("parsed, but %v", err)
		}
	})
}
