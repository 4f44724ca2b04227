package kube

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// defaultServiceAccountDir is where the kubelet projects the token and the cluster CA into every container.
const defaultServiceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// errNotInCluster says how to reach an API server when there is no pod environment.
var errNotInCluster = errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: not inside a pod; name a kubeconfig instead")

// loadConfig reads the way to the API server from files and environment. It makes no network call.
func loadConfig(o Options) (*rest.Config, error) {
	if o.Kubeconfig != "" {
		return kubeconfigFile(o.Kubeconfig)
	}
	return inCluster(o.ServiceAccountDir, os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
}

// kubeconfigFile reads the current context of one kubeconfig file. Relative paths in it are relative to its folder.
func kubeconfigFile(path string) (*rest.Config, error) {
	raw, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	if err := clientcmd.ResolveLocalPaths(raw); err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	if raw.CurrentContext == "" {
		return nil, fmt.Errorf("read kubeconfig %s: current-context is not set", path)
	}
	cfg, err := clientcmd.NewDefaultClientConfig(*raw, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	return cfg, nil
}

// inCluster builds the configuration of a pod's service account. Unlike rest.InClusterConfig it refuses an unreadable
// CA: going on with the system's roots would only fail later, with a message that does not name the file.
func inCluster(dir, host, port string) (*rest.Config, error) {
	if host == "" || port == "" {
		return nil, fmt.Errorf("in-cluster config: %w", errNotInCluster)
	}
	tokenFile, caFile := filepath.Join(dir, "token"), filepath.Join(dir, "ca.crt")
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, fmt.Errorf("in-cluster config: token: %w", err)
	}
	if strings.TrimSpace(string(token)) == "" {
		return nil, fmt.Errorf("in-cluster config: token %s: empty", tokenFile)
	}
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("in-cluster config: cluster CA: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("in-cluster config: cluster CA %s: no PEM certificate in it", caFile)
	}
	return &rest.Config{
		Host:            "https://" + net.JoinHostPort(host, port),
		TLSClientConfig: rest.TLSClientConfig{CAFile: caFile},
		BearerToken:     strings.TrimSpace(string(token)),
		BearerTokenFile: tokenFile, // read again every minute: projected tokens rotate
	}, nil
}
