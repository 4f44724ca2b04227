package node

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"spillway/test/cluster/pki"
)

func testNode() Node {
	return Node{Name: "n1", IP: net.ParseIP("192.168.77.2"), SandboxImage: "localhost/pause:1"}
}

func TestKubeletYAML(t *testing.T) {
	disks := map[string]any{"nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"}
	with := func(threshold string) map[string]any {
		m := map[string]any{"memory.available": threshold}
		for k, v := range disks {
			m[k] = v
		}
		return m
	}
	for name, tc := range map[string]struct {
		k    Kubelet
		want map[string]any // fields and their values; nil: must be absent
	}{
		"hard only": {Kubelet{HardThreshold: 15 << 30}, map[string]any{
			"evictionHard": with("16106127360"), "evictionSoft": nil, "systemReserved": nil, "failCgroupV1": false,
			"enforceNodeAllocatable": []any{"pods"}, "evictionPressureTransitionPeriod": "10s", "oomScoreAdj": float64(0),
		}},
		"no memory threshold": {Kubelet{}, map[string]any{"evictionHard": disks}},
		"soft": {Kubelet{HardThreshold: 1 << 20, SoftThreshold: 2 << 20, SoftGrace: 90 * time.Second}, map[string]any{
			"evictionSoft":            map[string]any{"memory.available": "2097152"},
			"evictionSoftGracePeriod": map[string]any{"memory.available": "1m30s"},
		}},
		"reserved": {Kubelet{SystemReserved: map[string]string{"memory": "1Gi"}, KubeReserved: map[string]string{"cpu": "100m"}}, map[string]any{
			"systemReserved": map[string]any{"memory": "1Gi"}, "kubeReserved": map[string]any{"cpu": "100m"},
		}},
		"extra wins": {Kubelet{HardThreshold: 1, Extra: map[string]any{"evictionHard": map[string]string{"memory.available": "10%"}, "maxPods": 250}}, map[string]any{
			"evictionHard": map[string]any{"memory.available": "10%"}, "maxPods": float64(250),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := testNode().KubeletYAML(tc.k)
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := yaml.Unmarshal(b, &got); err != nil {
				t.Fatalf("%v in\n%s", err, b)
			}
			for field, want := range tc.want {
				if d := cmp.Diff(want, got[field]); d != "" {
					t.Errorf("%s (-want +got):\n%s", field, d)
				}
			}
			for _, on := range []string{"anonymous", "webhook"} {
				auth := got["authentication"].(map[string]any)[on].(map[string]any)
				if auth["enabled"] != (on == "webhook") {
					t.Errorf("authentication %s: %v", on, auth)
				}
			}
		})
	}
}

func TestOOMScoresFollowTheCapability(t *testing.T) {
	n := testNode()
	n.LowerOOMScores = true
	b, err := n.KubeletYAML(Kubelet{})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "oomScoreAdj") {
		t.Error("kubelet does not lower its score although it may")
	}
	if !strings.Contains(string(n.ContainerdTOML()), "restrict_oom_score_adj = false") ||
		!strings.Contains(string(testNode().ContainerdTOML()), "restrict_oom_score_adj = true") {
		t.Error("containerd's restriction does not follow the capability")
	}
}

// TestFiles loads the rendered kubeconfig the way a client does, and looks at who the certificates are for.
func TestFiles(t *testing.T) {
	ca, err := pki.NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	n := testNode()
	n.CNI = BridgeCNI("10.88.0.0/24")
	files, err := n.Files(ca, "https://10.96.0.1:443")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if !filepath.IsAbs(name) || len(content) == 0 {
			t.Errorf("file %q has %d bytes", name, len(content))
		}
	}
	c, err := clientcmd.RESTConfigFromKubeConfig(files[KubeletKube])
	if err != nil {
		t.Fatal(err)
	}
	client, err := tls.X509KeyPair(c.CertData, c.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	who := client.Leaf.Subject
	if c.Host != "https://10.96.0.1:443" || !bytes.Equal(c.CAData, ca.PEM()) || who.CommonName != "system:node:n1" || who.Organization[0] != "system:nodes" {
		t.Errorf("host %s, client %v", c.Host, who)
	}
	serving, err := tls.X509KeyPair(files[KubeletCert], files[KubeletKey])
	if err != nil {
		t.Fatal(err)
	}
	if err := serving.Leaf.VerifyHostname("192.168.77.2"); err != nil {
		t.Error(err)
	}
}

func TestBridgeCNI(t *testing.T) {
	var c struct {
		Plugins []struct {
			Type string
			IPAM struct{ Ranges [][]struct{ Subnet string } }
		}
	}
	if err := json.Unmarshal(BridgeCNI("10.88.0.0/24"), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Plugins) != 2 || c.Plugins[0].IPAM.Ranges[0][0].Subnet != "10.88.0.0/24" || c.Plugins[1].Type != "portmap" {
		t.Errorf("%+v", c)
	}
	c.Plugins = nil
	if err := json.Unmarshal(RoutedCNI("10.88.10.0/24"), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Plugins) != 1 || c.Plugins[0].Type != "bridge" || c.Plugins[0].IPAM.Ranges[0][0].Subnet != "10.88.10.0/24" {
		t.Errorf("without host ports: %+v", c)
	}
}

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestReadMemory(t *testing.T) {
	const meminfo = "MemTotal:       24684084 kB\nMemFree:        1 kB\n"
	const v2 = "anon 1000\nfile 500\nkernel 9999\ninactive_file 200\n"
	for name, tc := range map[string]struct {
		files map[string]string
		set   int64
		says  string
	}{
		"v1": {map[string]string{
			"proc/meminfo": meminfo, "cg/memory/memory.usage_in_bytes": "5000\n",
			"cg/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 700\n",
		}, 4300, ""},
		"v1 more inactive than used": {map[string]string{
			"proc/meminfo": meminfo, "cg/memory/memory.usage_in_bytes": "5\n", "cg/memory/memory.stat": "total_inactive_file 700\n",
		}, 0, ""},
		"v2":            {map[string]string{"proc/meminfo": meminfo, "cg/memory.stat": v2}, 1300, ""},
		"v2 no file":    {map[string]string{"proc/meminfo": meminfo, "cg/memory.stat": "anon 1\ninactive_file 1\n"}, 0, "no file"},
		"v1 bad usage":  {map[string]string{"proc/meminfo": meminfo, "cg/memory/memory.usage_in_bytes": "x"}, 0, "parse"},
		"bad meminfo":   {map[string]string{"proc/meminfo": "MemTotal: x kB\n"}, 0, "parse"},
		"empty meminfo": {map[string]string{"proc/meminfo": ""}, 0, "no MemTotal:"},
		"no cgroups":    {map[string]string{"proc/meminfo": meminfo}, 0, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, tc.files)
			m, err := ReadMemory(filepath.Join(dir, "proc"), filepath.Join(dir, "cg"))
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("error %v, want %q", err, tc.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if m.Capacity != 24684084<<10 || m.WorkingSet != tc.set || m.Available() != m.Capacity-tc.set {
				t.Errorf("%+v, want working set %d", m, tc.set)
			}
		})
	}
}
