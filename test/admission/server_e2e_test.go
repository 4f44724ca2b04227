//go:build e2e

// Package admission_test holds what the API server makes of the manifests' admission policies and flow control: etcd and
// kube-apiserver alone, on the loopback address of this machine.
package admission_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"spillway/test/cluster"
	"spillway/test/cluster/node"
	"spillway/test/cluster/pki"
)

// server is an API server with its etcd. No controller and no node runs: what it says of objects is its own word.
type server struct {
	node       string
	port       string
	pid        int // of the API server
	kubectlBin string
	kubeconfig string
	config     *rest.Config // the administrator's
	admin      *kubernetes.Clientset
	clients    map[string]*rest.RESTClient // by token
	namespaces map[string]bool
	flow       atomic.Pointer[http.Header] // of the newest answer to a token
}

func startServer(t *testing.T, flags ...string) *server {
	t.Helper()
	programs, err := cluster.Programs(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca, err := pki.NewAuthority("spillway-test")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, text []byte, err error) string {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	serving, err := ca.Issue(pki.Request{Name: "kube-apiserver", IPs: []net.IP{net.ParseIP("127.0.0.1")}})
	crt, key := write("apiserver.crt", serving.Cert, err), write("apiserver.key", serving.Key, err)
	private, public, err := pki.ServiceAccountKeys()
	saKey, saPub := write("sa.key", private, err), write("sa.pub", public, err)
	caFile := write("ca.crt", ca.PEM(), nil)
	admin, err := ca.Issue(pki.Request{Name: "admin", Organizations: []string{"system:masters"}})
	if err != nil {
		t.Fatal(err)
	}
	etcd, peer, port := freePort(t), freePort(t), freePort(t)
	s := &server{node: "here", port: port, kubectlBin: filepath.Join(programs, "kubectl"), clients: map[string]*rest.RESTClient{}, namespaces: map[string]bool{}}
	s.config = &rest.Config{Host: "https://127.0.0.1:" + port, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.PEM(), CertData: admin.Cert, KeyData: admin.Key}}
	text, err := node.Kubeconfig(s.config.Host, ca, admin)
	s.kubeconfig = write("kubeconfig", text, err)
	if s.admin, err = kubernetes.NewForConfig(s.config); err != nil {
		t.Fatal(err)
	}
	run(t, dir, filepath.Join(programs, "etcd"), "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls=http://127.0.0.1:"+etcd, "--advertise-client-urls=http://127.0.0.1:"+etcd,
		"--listen-peer-urls=http://127.0.0.1:"+peer, "--initial-advertise-peer-urls=http://127.0.0.1:"+peer, "--initial-cluster=default=http://127.0.0.1:"+peer)
	s.pid = run(t, dir, filepath.Join(programs, "kube-apiserver"), append(flags, "--etcd-servers=http://127.0.0.1:"+etcd, "--bind-address=127.0.0.1", "--secure-port="+port,
		"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16", "--cert-dir="+dir,
		"--tls-cert-file="+crt, "--tls-private-key-file="+key, "--client-ca-file="+caFile, "--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount", // nothing makes a namespace's default account
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+saPub, "--service-account-signing-key-file="+saKey)...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		err := s.admin.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		if err == nil {
			return s
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(dir, "kube-apiserver.log"))
			t.Fatalf("the API server is not ready: %v\n%s", err, log[max(0, len(log)-4000):])
		}
	}
}

// run starts a program that ends with the test, or with this process.
func run(t *testing.T, dir, program string, args ...string) (pid int) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, filepath.Base(program)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		var ended *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
			t.Error(err)
		}
		log.Close()
	})
	return cmd.Process.Pid
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func (s *server) kubectl(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.kubectlBin, append([]string{"--kubeconfig", s.kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// cpu is the time that the API server's threads have run.
func (s *server) cpu(t *testing.T) time.Duration {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", s.pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("threads of %d: %v", s.pid, err)
	}
	var sum time.Duration
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// headers keeps those of the newest answer.
type headers struct {
	rt   http.RoundTripper
	last *atomic.Pointer[http.Header]
}

func (h *headers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := h.rt.RoundTrip(req)
	if err == nil {
		h.last.Store(&resp.Header)
	}
	return resp, err
}
