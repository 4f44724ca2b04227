package node

import (
	"fmt"
	"net"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"spillway/test/cluster/pki"
)

// Files returns everything that a node needs on its disk to join, by path, but for the kubelet's configuration
// ([Node.KubeletYAML]), whose threshold depends on the node's memory at that time. Server is the API server's URL.
func (n Node) Files(ca *pki.Authority, server string) (map[string][]byte, error) {
	client, err := ca.Issue(pki.Request{Name: n.User(), Organizations: n.Groups()})
	if err != nil {
		return nil, err
	}
	serving, err := ca.Issue(pki.Request{
		Name: n.User(), Organizations: n.Groups(), IPs: []net.IP{n.IP}, DNS: []string{n.Name},
	})
	if err != nil {
		return nil, err
	}
	kubeconfig, err := Kubeconfig(server, ca, client)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		AuthorityCert:    ca.PEM(),
		KubeletKube:      kubeconfig,
		KubeletCert:      serving.Cert,
		KubeletKey:       serving.Key,
		ContainerdConfig: n.ContainerdTOML(),
		filepath.Join(CNIConfigDir, "10-pods.conflist"): n.CNI,
	}, nil
}

// Kubeconfig renders a client's configuration with everything in the one file, so that it can be carried elsewhere.
func Kubeconfig(server string, ca *pki.Authority, p pki.Pair) ([]byte, error) {
	b, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []any{map[string]any{"name": "test", "cluster": map[string]any{
			"server": server, "certificate-authority-data": ca.PEM(),
		}}},
		"users": []any{map[string]any{"name": "user", "user": map[string]any{
			"client-certificate-data": p.Cert, "client-key-data": p.Key,
		}}},
		"contexts":        []any{map[string]any{"name": "test", "context": map[string]any{"cluster": "test", "user": "user"}}},
		"current-context": "test",
	})
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	return b, nil
}
