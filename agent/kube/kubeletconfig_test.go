package kube

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const kubeletHead = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"

// kubeletFiles writes a main file and drop-ins (path below the folder -> content).
func kubeletFiles(t testing.TB, main string, dropIns map[string]string) (path, dir string) {
	t.Helper()
	root := t.TempDir()
	path = filepath.Join(root, "config.yaml")
	if err := os.WriteFile(path, []byte(main), 0o600); err != nil {
		t.Fatal(err)
	}
	if dropIns == nil {
		return path, ""
	}
	dir = filepath.Join(root, "config.d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range dropIns {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path, dir
}

func TestReadKubeletConfigFile(t *testing.T) {
	defaults := map[string]string{"memory.available": "100Mi", "nodefs.available": "10%", "nodefs.inodesFree": "5%",
		"imagefs.available": "15%", "imagefs.inodesFree": "5%"}
	with := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for k, v := range defaults {
			m[k] = v
		}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	pods := []string{"pods"}
	hard := func(signal string, bytes uint64) MemoryThreshold {
		return MemoryThreshold{Signal: signal, Hard: true, Bytes: bytes}
	}
	both := func(bytes uint64) []MemoryThreshold {
		return []MemoryThreshold{hard(SignalMemory, bytes), hard(SignalAllocatableMemory, bytes)}
	}
	for _, tc := range []struct {
		name       string
		main       string
		dropIns    map[string]string
		want       KubeletConfig
		thresholds []MemoryThreshold
	}{
		{
			name: "nothing set", main: kubeletHead,
			want:       KubeletConfig{Source: "0", EvictionHard: defaults, EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
			thresholds: both(100 * mib),
		},
		{
			name: "everything set, in JSON",
			main: `{"apiVersion":"kubelet.config.k8s.io/v1beta1","kind":"KubeletConfiguration","evictionHard":{"memory.available":"5%"},
				"evictionSoft":{"memory.available":"1.5Gi"},"evictionSoftGracePeriod":{"memory.available":"1m30s"},
				"enforceNodeAllocatable":["pods","system-reserved"],"systemReserved":{"memory":"1Gi"},"kubeReserved":{"memory":"512Mi","cpu":"1"},
				"cgroupDriver":"systemd","cgroupRoot":"/r","mergeDefaultEvictionSettings":false,"unknownField":{"a":[1]}}`,
			want: KubeletConfig{Source: "0", EvictionHard: map[string]string{"memory.available": "5%"}, EvictionSoft: map[string]string{"memory.available": "1.5Gi"},
				EvictionSoftGracePeriod: map[string]time.Duration{"memory.available": 90 * time.Second},
				EnforceNodeAllocatable:  []string{"pods", "system-reserved"}, SystemReserved: map[string]string{"memory": "1Gi"},
				KubeReserved: map[string]string{"memory": "512Mi", "cpu": "1"}, CgroupDriver: "systemd", CgroupRoot: "/r"},
			thresholds: []MemoryThreshold{{Signal: SignalMemory, Hard: true, Percent: 5}, {Signal: SignalAllocatableMemory, Hard: true, Percent: 5},
				{Signal: SignalMemory, Bytes: 1536 * mib, Grace: 90 * time.Second}},
		},
		{
			name: "evictionHard without memory means no threshold", main: kubeletHead + "evictionHard: {nodefs.available: 1Gi}\n",
			want: KubeletConfig{Source: "0", EvictionHard: map[string]string{"nodefs.available": "1Gi"}, EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
		},
		{
			name: "empty evictionHard means no threshold", main: kubeletHead + "evictionHard: {}\n",
			want: KubeletConfig{Source: "0", EvictionHard: map[string]string{}, EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
		},
		{
			name: "null evictionHard means the defaults", main: kubeletHead + "evictionHard: null\n",
			want:       KubeletConfig{Source: "0", EvictionHard: defaults, EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
			thresholds: both(100 * mib),
		},
		{
			name: "mergeDefaultEvictionSettings fills in", main: kubeletHead + "evictionHard: {nodefs.available: 1Gi}\nmergeDefaultEvictionSettings: true\n",
			want: KubeletConfig{Source: "0", EvictionHard: with("nodefs.available", "1Gi"), EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs",
				MergeDefaultEvictionSettings: true},
			thresholds: both(100 * mib),
		},
		{
			name: "yes is true, as in YAML 1.1", main: kubeletHead + "evictionHard: {nodefs.available: 1Gi}\nmergeDefaultEvictionSettings: yes\n",
			want: KubeletConfig{Source: "0", EvictionHard: with("nodefs.available", "1Gi"), EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs",
				MergeDefaultEvictionSettings: true},
			thresholds: both(100 * mib),
		},
		{
			name: "switched off with 0%", main: kubeletHead + "evictionHard: {memory.available: 0%}\n",
			want: KubeletConfig{Source: "0", EvictionHard: map[string]string{"memory.available": "0%"}, EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
		},
		{
			name: "pods not enforced", main: kubeletHead + "enforceNodeAllocatable: []\n",
			want:       KubeletConfig{Source: "0", EvictionHard: defaults, CgroupDriver: "cgroupfs"},
			thresholds: []MemoryThreshold{hard(SignalMemory, 100*mib)},
		},
		{
			name: "an empty drop-in folder brings the default enforcement back", main: kubeletHead + "enforceNodeAllocatable: []\n", dropIns: map[string]string{},
			want:       KubeletConfig{Source: "0", EvictionHard: defaults, EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
			thresholds: both(100 * mib),
		},
		{
			name: "drop-ins in lexical order, subfolders and other names", main: kubeletHead + "evictionHard: {memory.available: 1Gi}\n",
			dropIns: map[string]string{
				"10-a.conf":        kubeletHead + "evictionHard: {memory.available: 2Gi, nodefs.available: 3%}\nsystemReserved: {memory: 1Gi}\n",
				"20-b/30.conf":     kubeletHead + "evictionHard: {memory.available: 3Gi}\n",
				"20-b.conf":        kubeletHead + "kubeReserved: {memory: 2Gi}\n",
				"90-not-used.yaml": "nonsense: [",
				"README":           "",
			},
			want: KubeletConfig{Source: "3", EvictionHard: map[string]string{"memory.available": "3Gi", "nodefs.available": "3%"}, EnforceNodeAllocatable: pods,
				SystemReserved: map[string]string{"memory": "1Gi"}, KubeReserved: map[string]string{"memory": "2Gi"}, CgroupDriver: "cgroupfs"},
			thresholds: both(3 * gib),
		},
		{
			name: "a drop-in adds to the defaults of a main file without evictionHard", main: kubeletHead,
			dropIns:    map[string]string{"1.conf": kubeletHead + "evictionHard: {nodefs.available: 1Gi}\n"},
			want:       KubeletConfig{Source: "1", EvictionHard: with("nodefs.available", "1Gi"), EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
			thresholds: both(100 * mib),
		},
		{
			name: "mergeDefaultEvictionSettings in a drop-in comes too late", main: kubeletHead + "evictionHard: {nodefs.available: 1Gi}\n",
			dropIns: map[string]string{"1.conf": kubeletHead + "mergeDefaultEvictionSettings: true\n"},
			want: KubeletConfig{Source: "1", EvictionHard: map[string]string{"nodefs.available": "1Gi"}, EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs",
				MergeDefaultEvictionSettings: true},
		},
		{
			name: "null in a drop-in removes a signal", main: kubeletHead,
			dropIns: map[string]string{"1.conf": kubeletHead + "evictionHard: {memory.available: null}\n"},
			want: KubeletConfig{Source: "1", EvictionHard: map[string]string{"nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%", "imagefs.inodesFree": "5%"},
				EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
		},
		{
			name: "null in a drop-in removes everything, without new defaults", main: kubeletHead,
			dropIns: map[string]string{"1.conf": kubeletHead + "evictionHard: null\nenforceNodeAllocatable: null\ncgroupDriver: null\n"},
			want:    KubeletConfig{Source: "1", EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
		},
		{
			name: "lists are replaced", main: kubeletHead + "enforceNodeAllocatable: [pods, kube-reserved]\n",
			dropIns:    map[string]string{"1.conf": kubeletHead + "enforceNodeAllocatable: []\n"},
			want:       KubeletConfig{Source: "1", EvictionHard: defaults, CgroupDriver: "cgroupfs"},
			thresholds: []MemoryThreshold{hard(SignalMemory, 100*mib)},
		},
		{
			name: "the grace period of a soft threshold from another file", main: kubeletHead + "evictionSoft: {memory.available: 1Gi}\n",
			dropIns: map[string]string{"1.conf": kubeletHead + "evictionSoftGracePeriod: {memory.available: 45s}\n"},
			want: KubeletConfig{Source: "1", EvictionHard: defaults, EvictionSoft: map[string]string{"memory.available": "1Gi"},
				EvictionSoftGracePeriod: map[string]time.Duration{"memory.available": 45 * time.Second}, EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
			thresholds: append(both(100*mib), MemoryThreshold{Signal: SignalMemory, Bytes: gib, Grace: 45 * time.Second}),
		},
		{
			name: "field names are case-sensitive", main: kubeletHead + "EvictionHard: {memory.available: 9Gi}\nevictionhard: {memory.available: 8Gi}\n",
			want:       KubeletConfig{Source: "0", EvictionHard: defaults, EnforceNodeAllocatable: pods, CgroupDriver: "cgroupfs"},
			thresholds: both(100 * mib),
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path, dir := kubeletFiles(t, tc.main, tc.dropIns)
			got, err := ReadKubeletConfigFile(path, dir)
			if err != nil {
				t.Fatal(err)
			}
			tc.want.Source = "file " + path + " + " + tc.want.Source + " drop-ins"
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
			thresholds, err := got.MemoryThresholds()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.thresholds, thresholds); diff != "" {
				t.Errorf("thresholds (-want +got):\n%s", diff)
			}
		})
	}
}

// Each error names the file at fault and the field.
func TestReadKubeletConfigFileErrors(t *testing.T) {
	for _, tc := range []struct {
		name    string
		main    string
		dropIns map[string]string
		want    []string
	}{
		{"empty", "", nil, []string{"config.yaml", "empty"}},
		{"not YAML", "a: [", nil, []string{"config.yaml", "yaml"}},
		{"a list", "[1]", nil, []string{"config.yaml", "cannot unmarshal array"}},
		{"another kind", "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n", nil, []string{"config.yaml", "kind ClusterConfiguration", "want kubelet.config.k8s.io/v1beta1"}},
		{"no kind", "evictionHard: {}\n", nil, []string{"config.yaml", "apiVersion <nil>"}},
		{"threshold is a number", kubeletHead + "evictionHard: {memory.available: 100}\n", nil, []string{"config.yaml", "evictionHard memory.available: a number, want a string"}},
		{"threshold is null", kubeletHead + "evictionHard: {memory.available: null}\n", nil, []string{"config.yaml", "evictionHard memory.available: null, want a string"}},
		{"evictionHard is a list", kubeletHead + "evictionHard: [a]\n", nil, []string{"config.yaml", "evictionHard: a list, want an object"}},
		{"malformed quantity", kubeletHead + "evictionHard: {memory.available: 5 apples}\n", nil, []string{"config.yaml", `evictionHard memory.available: quantity "5 apples"`}},
		{"malformed percentage", kubeletHead + "evictionSoft: {memory.available: x%}\n", nil, []string{"config.yaml", `evictionSoft memory.available: percentage "x%"`}},
		{"negative", kubeletHead + "evictionHard: {memory.available: -1Gi}\n", nil, []string{"config.yaml", `quantity "-1Gi": not positive`}},
		{"soft without grace", kubeletHead + "evictionSoft: {memory.available: 1Gi}\n", nil, []string{"config.yaml", "evictionSoftGracePeriod memory.available: not set"}},
		{"malformed grace", kubeletHead + "evictionSoftGracePeriod: {memory.available: soon}\n", nil, []string{"config.yaml", `evictionSoftGracePeriod memory.available "soon"`}},
		{"negative grace", kubeletHead + "evictionSoftGracePeriod: {memory.available: -1s}\n", nil, []string{"config.yaml", "negative"}},
		{"malformed reservation", kubeletHead + "systemReserved: {memory: lots}\n", nil, []string{"config.yaml", `systemReserved memory "lots"`}},
		{"enforceNodeAllocatable is a string", kubeletHead + "enforceNodeAllocatable: pods\n", nil, []string{"config.yaml", "enforceNodeAllocatable: a string, want a list"}},
		{"enforceNodeAllocatable holds a number", kubeletHead + "enforceNodeAllocatable: [pods, 1]\n", nil, []string{"config.yaml", "enforceNodeAllocatable[1]: a number"}},
		{"cgroupDriver", kubeletHead + "cgroupDriver: true\n", nil, []string{"config.yaml", "cgroupDriver: a boolean, want a string"}},
		{"mergeDefaultEvictionSettings", kubeletHead + "mergeDefaultEvictionSettings: 'yes'\n", nil, []string{"config.yaml", "mergeDefaultEvictionSettings: a string"}},
		{"drop-in of another kind", kubeletHead, map[string]string{"5.conf": "a: b\n"}, []string{"5.conf", "apiVersion <nil>"}},
		{"empty drop-in", kubeletHead, map[string]string{"5.conf": ""}, []string{"5.conf", "empty"}},
		{"malformed drop-in", kubeletHead, map[string]string{"5.conf": kubeletHead + "evictionHard: {memory.available: x}\n"}, []string{"5.conf", "evictionHard memory.available"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path, dir := kubeletFiles(t, tc.main, tc.dropIns)
			_, err := ReadKubeletConfigFile(path, dir)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q, want %q in it", err, w)
				}
			}
		})
	}
	t.Run("a malformed value that a later file replaces", func(t *testing.T) {
		path, dir := kubeletFiles(t, kubeletHead+"evictionHard: {memory.available: x}\n", map[string]string{
			"1.conf": kubeletHead + "evictionHard: {memory.available: y}\n", "2.conf": kubeletHead + "evictionHard: {memory.available: 1Gi}\n"})
		if k, err := ReadKubeletConfigFile(path, dir); err != nil || k.EvictionHard["memory.available"] != "1Gi" {
			t.Errorf("%+v, %v", k, err)
		}
	})
	path, _ := kubeletFiles(t, kubeletHead, nil)
	for _, tc := range [][2]string{{path + ".none", ""}, {path, path + ".d"}, {"", ""}} {
		if _, err := ReadKubeletConfigFile(tc[0], tc[1]); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("%q: %v", tc, err)
		}
	}
}

// The examples of RFC 7386, appendix A, whose target and patch are objects.
func TestMergePatch(t *testing.T) {
	for _, tc := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		var doc, patch, want map[string]any
		for i, into := range []*map[string]any{&doc, &patch, &want} {
			if err := json.Unmarshal([]byte(tc[i]), into); err != nil {
				t.Fatal(err)
			}
		}
		mergePatch(doc, patch)
		if diff := cmp.Diff(want, doc); diff != "" {
			t.Errorf("%s + %s (-want +got):\n%s", tc[0], tc[1], diff)
		}
	}
}

func FuzzReadKubeletConfigFile(f *testing.F) {
	f.Add([]byte(kubeletHead), []byte(kubeletHead+"evictionHard: {memory.available: 5%}\n"))
	f.Add([]byte(kubeletHead+"evictionHard: {memory.available: 5%}\nevictionSoft: {memory.available: 1Gi}\nsystemReserved: {memory: 1Gi}\n"),
		[]byte(kubeletHead+"evictionHard: null\nevictionSoftGracePeriod: {memory.available: 1s}\nmergeDefaultEvictionSettings: true\n"))
	f.Fuzz(func(t *testing.T, main, dropIn []byte) {
		path, dir := kubeletFiles(t, string(main), map[string]string{"1.conf": string(dropIn)})
		for _, d := range []string{"", dir} {
			k, err := ReadKubeletConfigFile(path, d)
			if err != nil {
				if !strings.Contains(err.Error(), "read kubelet") {
					t.Fatalf("error %v names no file", err)
				}
				continue
			}
			if _, err := k.MemoryThresholds(); err != nil {
				t.Fatalf("read, but %v", err)
			}
			if k.CgroupDriver == "" {
				t.Fatalf("config %+v", k)
			}
		}
	})
}
