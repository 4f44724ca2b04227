package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"spillway/test/cluster/node"
	"spillway/test/cluster/pki"
)

const (
	apiServer   = "https://" + serviceIP + ":443"
	kubeletUser = "kube-apiserver-kubelet-client" // who the API server is to a kubelet
	issuer      = "https://kubernetes.default.svc.cluster.local"
)

// auditPolicy keeps every request in the audit log, evictions with their bodies, and whose rights were asked for. Only answered
// requests are logged: one line each.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: RequestResponse
  resources:
  - group: ""
    resources: [pods/eviction]
- level: Request
  resources:
  - group: authorization.k8s.io
    resources: [subjectaccessreviews]
- level: Metadata
`

// writeIdentities makes all keys, certificates and kubeconfig files.
func (s *Supervisor) writeIdentities() error {
	ca, err := pki.NewAuthority("spillway-test")
	if err != nil {
		return err
	}
	var errs []error
	write := func(name string, content []byte) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			errs = append(errs, err)
			return
		}
		errs = append(errs, os.WriteFile(name, content, 0o600))
	}
	pair := func(base string, r pki.Request) {
		p, err := ca.Issue(r)
		errs = append(errs, err)
		write(base+".crt", p.Cert)
		write(base+".key", p.Key)
	}
	kubeconfig := func(name string, r pki.Request) {
		p, err := ca.Issue(r)
		errs = append(errs, err)
		b, err := node.Kubeconfig(apiServer, ca, p)
		errs = append(errs, err)
		write(name, b)
	}
	write(s.pki("ca.crt"), ca.PEM())
	key, err := ca.KeyPEM() // for nodes that join later
	errs = append(errs, err)
	write(s.pki("ca.key"), key)
	pair(s.pki("apiserver"), pki.Request{
		Name: "kube-apiserver",
		IPs:  []net.IP{net.ParseIP(serviceIP), net.ParseIP("127.0.0.1"), s.node.IP},
		DNS:  []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
	})
	pair(s.pki("kubelet-client"), pki.Request{Name: kubeletUser})
	private, public, err := pki.ServiceAccountKeys()
	errs = append(errs, err)
	write(s.pki("sa.key"), private)
	write(s.pki("sa.pub"), public)
	write(s.pki("audit-policy.yaml"), []byte(auditPolicy))
	kubeconfig(s.run.Kubeconfig(), pki.Request{Name: "admin", Organizations: []string{"system:masters"}})
	kubeconfig(s.pki("controller-manager.conf"), pki.Request{Name: "system:kube-controller-manager"})
	kubeconfig(s.pki("scheduler.conf"), pki.Request{Name: "system:kube-scheduler"})
	files, err := s.node.Files(ca, apiServer)
	errs = append(errs, err)
	for name, content := range files {
		write(name, content)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write identities: %w", err)
	}
	return nil
}

func (s *Supervisor) pki(name string) string { return filepath.Join(s.run.PKI(), name) }

func etcdArgs() []string {
	return []string{
		"--data-dir=/var/lib/etcd",
		"--unsafe-no-fsync",
		"--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380",
	}
}

func (s *Supervisor) apiServerArgs() []string {
	args := []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0",
		"--secure-port=443",
		"--advertise-address=" + s.node.IP.String(),
		"--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=" + serviceSubnet,
		"--tls-cert-file=" + s.pki("apiserver.crt"),
		"--tls-private-key-file=" + s.pki("apiserver.key"),
		"--client-ca-file=" + s.pki("ca.crt"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + s.pki("sa.pub"),
		"--service-account-signing-key-file=" + s.pki("sa.key"),
		"--kubelet-certificate-authority=" + s.pki("ca.crt"),
		"--kubelet-client-certificate=" + s.pki("kubelet-client.crt"),
		"--kubelet-client-key=" + s.pki("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--audit-policy-file=" + s.pki("audit-policy.yaml"),
		"--audit-log-path=" + s.run.Audit(),
		"--audit-log-mode=blocking", // a test that saw an answer finds its line
		"--audit-log-maxsize=1000",
	}
	if s.options.NoAdmissionPolicies {
		// The plugins of the group wait for its objects, so they go with it.
		args = append(args, "--runtime-config=admissionregistration.k8s.io/v1=false",
			"--disable-admission-plugins=ValidatingAdmissionPolicy,MutatingAdmissionPolicy,ValidatingAdmissionWebhook,MutatingAdmissionWebhook")
	}
	return args
}

func (s *Supervisor) controllerManagerArgs() []string {
	return []string{
		"--kubeconfig=" + s.pki("controller-manager.conf"),
		"--root-ca-file=" + s.pki("ca.crt"), // without it no pod gets kube-root-ca.crt, and none with a token starts
		"--service-account-private-key-file=" + s.pki("sa.key"),
		"--use-service-account-credentials",
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		"--flex-volume-plugin-dir=" + node.VolumePlugins,
		"--node-monitor-period=1s",                   // a new node loses its not-ready taint 5 s later with the default
		"--horizontal-pod-autoscaler-sync-period=2s", // a new autoscaler has its first status only then
	}
}

func (s *Supervisor) schedulerArgs() []string {
	return []string{
		"--kubeconfig=" + s.pki("scheduler.conf"),
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
	}
}
