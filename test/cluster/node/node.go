// Package node describes one node of the test cluster: its identity, the configuration files of its kubelet and
// containerd, and its memory as the kubelet sees it. It renders and reads; it starts nothing.
package node

import (
	"fmt"
	"maps"
	"net"
	"strconv"
	"time"

	"sigs.k8s.io/yaml"
)

// Paths inside a node: those of any other Kubernetes node, so that manifests with host paths run unchanged.
const (
	ContainerdSocket = "/run/containerd/containerd.sock"
	ContainerdConfig = "/etc/containerd/config.toml"
	KubeletConfig    = "/var/lib/kubelet/config.yaml"
	KubeletKube      = "/etc/kubernetes/kubelet.conf"
	KubeletCert      = "/var/lib/kubelet/pki/kubelet.crt"
	KubeletKey       = "/var/lib/kubelet/pki/kubelet.key"
	AuthorityCert    = "/etc/kubernetes/pki/ca.crt"
	CNIConfigDir     = "/etc/cni/net.d"
	CNIBinDir        = "/opt/cni/bin"
	VolumePlugins    = "/var/lib/kubelet/volumeplugins" // the default is made on the machine's own /usr
)

// Node is one node's identity and how it differs from others.
type Node struct {
	// Name is the node's name in the API.
	Name string
	// IP is the address it registers.
	IP net.IP
	// SandboxImage is the pod sandbox's image; it must be in the node's image store.
	SandboxImage string
	// LowerOOMScores says whether processes may lower their oom_score_adj (CAP_SYS_RESOURCE).
	LowerOOMScores bool
	// AppArmor says whether containerd confines containers, where the kernel and apparmor_parser allow it.
	AppArmor bool
	// CNI is the content of the network configuration list.
	CNI []byte
}

// Kubelet is what a test may choose about the kubelet.
type Kubelet struct {
	// HardThreshold is evictionHard memory.available in bytes; 0 leaves the node without one.
	HardThreshold int64
	// SoftThreshold is evictionSoft memory.available in bytes with its grace; 0 for none.
	SoftThreshold int64
	SoftGrace     time.Duration
	// SystemReserved and KubeReserved are resource quantities, such as {"memory": "1Gi"}.
	SystemReserved, KubeReserved map[string]string
	// Extra replaces top-level fields of the configuration, by their JSON names.
	Extra map[string]any
}

// KubeletYAML renders the kubelet's configuration file.
func (n Node) KubeletYAML(k Kubelet) ([]byte, error) {
	hard := map[string]string{
		// A test machine's disk says nothing about a node's.
		"nodefs.available":   "0%",
		"nodefs.inodesFree":  "0%",
		"imagefs.available":  "0%",
		"imagefs.inodesFree": "0%",
	}
	if k.HardThreshold > 0 {
		hard["memory.available"] = strconv.FormatInt(k.HardThreshold, 10)
	}
	c := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": AuthorityCert},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"tlsCertFile":              KubeletCert,
		"tlsPrivateKeyFile":        KubeletKey,
		"containerRuntimeEndpoint": "unix://" + ContainerdSocket,
		"cgroupDriver":             "cgroupfs",
		"failCgroupV1":             false, // 1.35 and later refuse v1 by default
		"failSwapOn":               false,
		"enforceNodeAllocatable":   []string{"pods"},
		"resolvConf":               "",
		"volumePluginDir":          VolumePlugins,
		// Short, or the taint of one run keeps the next run's pods pending for minutes.
		"evictionPressureTransitionPeriod": "10s",
		"nodeStatusUpdateFrequency":        "2s",
		"nodeStatusReportFrequency":        "5s",
		"imageGCHighThresholdPercent":      100, // nobody could pull an image again
		"imageGCLowThresholdPercent":       99,
		"evictionHard":                     hard,
	}
	if !n.LowerOOMScores {
		c["oomScoreAdj"] = 0
	}
	if k.SoftThreshold > 0 {
		c["evictionSoft"] = map[string]string{"memory.available": strconv.FormatInt(k.SoftThreshold, 10)}
		c["evictionSoftGracePeriod"] = map[string]string{"memory.available": k.SoftGrace.String()}
	}
	if len(k.SystemReserved) > 0 {
		c["systemReserved"] = k.SystemReserved
	}
	if len(k.KubeReserved) > 0 {
		c["kubeReserved"] = k.KubeReserved
	}
	maps.Copy(c, k.Extra)
	b, err := yaml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode kubelet configuration: %w", err)
	}
	return b, nil
}

// KubeletArgs are the kubelet's arguments. Without --node-ip it looks its own name up in DNS and is late.
func (n Node) KubeletArgs() []string {
	return []string{
		"--config=" + KubeletConfig,
		"--kubeconfig=" + KubeletKube,
		"--hostname-override=" + n.Name,
		"--node-ip=" + n.IP.String(),
		"--v=2",
	}
}

// User and Groups are the identity that the Node authorizer and NodeRestriction want to see.
func (n Node) User() string     { return "system:node:" + n.Name }
func (n Node) Groups() []string { return []string{"system:nodes"} }

// ContainerdTOML renders containerd's configuration file.
func (n Node) ContainerdTOML() []byte {
	return fmt.Appendf(nil, `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = %q
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = %t
  restrict_oom_score_adj = %t
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = %q
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    SystemdCgroup = false
`, ContainerdSocket, n.SandboxImage, !n.AppArmor, !n.LowerOOMScores, CNIBinDir, CNIConfigDir)
}

// BridgeCNI is the network configuration of a node that routes its pods itself.
func BridgeCNI(subnet string) []byte {
	return fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"pods","plugins":[
{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"ipam":{"type":"host-local","ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}
`, subnet)
}

// RoutedCNI is the network configuration of a node without host ports, which need iptables.
func RoutedCNI(subnet string) []byte {
	return fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"pods","plugins":[
{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"ipam":{"type":"host-local","ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
`, subnet)
}
