package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"spillway/agent/kube"
	"spillway/agent/pressure"
)

// TestKubeletThresholds: where /configz cannot be asked, the kubelet's file with its drop-ins comes before our config, and
// the source is named.
func TestKubeletThresholds(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
	file := write("config.yaml", head+"evictionHard: {memory.available: 200Mi}\nevictionSoft: {memory.available: 300Mi}\nevictionSoftGracePeriod: {memory.available: 1m}\n")
	write("conf.d/10-more.conf", head+"evictionHard: {memory.available: 5%}\n")
	broken := write("broken.yaml", head+"evictionHard: {memory.available: lots}\n")
	for _, tc := range []struct {
		name   string
		cfg    KubeletConfig
		source string // part of it
		want   []string
		err    string
	}{
		{"file before config", KubeletConfig{ConfigFile: file, MemoryAvailable: "1Gi"}, file, []string{"hard memory.available 209715200", "hard allocatableMemory.available 209715200", "soft memory.available 314572800 grace 1m0s"}, ""},
		{"drop-in over file", KubeletConfig{ConfigFile: file, DropInDir: filepath.Join(dir, "conf.d")}, "1 drop-ins", []string{"hard memory.available 5 %"}, ""},
		{"config when there is no file", KubeletConfig{ConfigFile: filepath.Join(dir, "none"), MemoryAvailable: "1Gi"}, "kubelet.memoryAvailable", []string{"hard memory.available 1073741824", "hard allocatableMemory.available 1073741824"}, ""},
		{"nothing", KubeletConfig{ConfigFile: filepath.Join(dir, "none")}, "", nil, "only MemAvailable is guarded"},
		{"broken file", KubeletConfig{ConfigFile: broken}, "", nil, "lots"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(nil, clusterSettings{kubelet: tc.cfg}, false, new(sources), slog.New(slog.DiscardHandler))
			got, source, err := c.kubelet(t.Context(), nodeView{})
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q in it", err, tc.err)
				}
				return
			}
			if err != nil || !strings.Contains(source, tc.source) {
				t.Fatalf("source %q, error %v, want %q", source, err, tc.source)
			}
			have := map[string]bool{}
			for _, th := range got {
				have[thresholdText(th)] = true
			}
			for _, w := range tc.want {
				if !have[w] {
					t.Errorf("thresholds %v, want %q among them", have, w)
				}
			}
		})
	}
}

func thresholdText(th pressure.Threshold) string {
	kind, value := "soft", strconv.FormatInt(int64(th.Bytes), 10)
	if th.Percent != 0 {
		value = strconv.FormatFloat(th.Percent, 'g', -1, 64) + " %"
	}
	if th.Hard {
		kind = "hard"
	}
	if th.Grace != 0 {
		value += " grace " + th.Grace.String()
	}
	return kind + " " + string(th.Signal) + " " + value
}

// TestRootFormulaFollowsTheKubelet: only on v2, and only of old kubelets, the node is read another way.
func TestRootFormulaFollowsTheKubelet(t *testing.T) {
	for _, tc := range []struct {
		name, version string
		v2            bool
		want          pressure.RootFormula
		says          bool // the source tells that the version is out of range
	}{
		{"v2, new", "v1.36.3", true, pressure.FromCgroup, false},
		{"v2, old", "v1.28.9", true, pressure.FromMeminfo, false},
		{"v1, old", "v1.28.9", false, pressure.FromCgroup, false},
		{"v2, of the future", "v1.99.0", true, pressure.FromCgroup, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			view := nodeView{known: true}
			view.node.KubeletVersion = tc.version
			cfg := kube.KubeletConfig{Source: "here", EvictionHard: map[string]string{"memory.available": "100Mi"}, EnforceNodeAllocatable: []string{"pods"}}
			c := newCluster(nil, clusterSettings{}, tc.v2, new(sources), slog.New(slog.DiscardHandler))
			got, source, err := c.thresholdsOf(cfg, view)
			if err != nil || len(got) != 2 || strings.Contains(source, tc.version) != tc.says {
				t.Fatalf("%+v from %q, error %v", got, source, err)
			}
			for _, th := range got {
				want := tc.want
				if th.Signal != pressure.MemoryAvailable {
					want = pressure.FromCgroup
				}
				if th.Root != want {
					t.Errorf("%s is read by formula %d, want %d", th.Signal, th.Root, want)
				}
			}
		})
	}
}

func TestLeaseOfADeadKubelet(t *testing.T) {
	now := time.Unix(1e9, 0)
	for name, tc := range map[string]struct {
		view leaseView
		want string
	}{
		"not read yet": {leaseView{}, "not been read yet"},
		"fresh":        {leaseView{asked: now, renewed: now.Add(-10 * time.Second)}, ""},
		"old":          {leaseView{asked: now, renewed: now.Add(-10 * time.Minute)}, "renewed 600 s ago"},
		"forbidden":    {leaseView{asked: now, forbidden: true}, ""},
	} {
		if got := tc.view.dead(now); (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q in it", name, got, tc.want)
		}
	}
}
