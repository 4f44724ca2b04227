package kube

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMemoryThresholds(t *testing.T) {
	minute := map[string]time.Duration{SignalMemory: time.Minute, SignalAllocatableMemory: 2 * time.Minute}
	for _, tc := range []struct {
		name string
		k    KubeletConfig
		want []MemoryThreshold
	}{
		{"nothing", KubeletConfig{}, nil},
		{"other signals are not ours", KubeletConfig{EvictionHard: map[string]string{"pid.available": "nonsense"}}, nil},
		{"hard is copied, soft is not, hard comes first", KubeletConfig{
			EvictionHard: map[string]string{SignalMemory: "500Mi"}, EvictionSoft: map[string]string{SignalMemory: "10%"},
			EvictionSoftGracePeriod: minute, EnforceNodeAllocatable: []string{"kube-reserved", "pods"},
		}, []MemoryThreshold{
			{Signal: SignalMemory, Hard: true, Bytes: 500 * mib}, {Signal: SignalAllocatableMemory, Hard: true, Bytes: 500 * mib},
			{Signal: SignalMemory, Percent: 10, Grace: time.Minute},
		}},
		{"not copied without pods", KubeletConfig{EvictionHard: map[string]string{SignalMemory: "5%"}, EnforceNodeAllocatable: []string{"none"}},
			[]MemoryThreshold{{Signal: SignalMemory, Hard: true, Percent: 5}}},
		{"only soft", KubeletConfig{EvictionSoft: map[string]string{SignalMemory: "1Gi"}, EvictionSoftGracePeriod: minute, EnforceNodeAllocatable: []string{"pods"}},
			[]MemoryThreshold{{Signal: SignalMemory, Bytes: gib, Grace: time.Minute}}},
		{"allocatable named by hand as well", KubeletConfig{
			EvictionHard: map[string]string{SignalMemory: "1Gi", SignalAllocatableMemory: "2Gi"}, EvictionSoft: map[string]string{SignalAllocatableMemory: "3Gi"},
			EvictionSoftGracePeriod: minute, EnforceNodeAllocatable: []string{"pods"},
		}, []MemoryThreshold{
			{Signal: SignalMemory, Hard: true, Bytes: gib}, {Signal: SignalAllocatableMemory, Hard: true, Bytes: 2 * gib},
			{Signal: SignalAllocatableMemory, Hard: true, Bytes: gib}, {Signal: SignalAllocatableMemory, Bytes: 3 * gib, Grace: 2 * time.Minute},
		}},
		{"0% and 100% switch off", KubeletConfig{EvictionHard: map[string]string{SignalMemory: "100%"}, EvictionSoft: map[string]string{SignalMemory: "0%"},
			EnforceNodeAllocatable: []string{"pods"}}, nil},
		{"0.0% is a threshold of nothing", KubeletConfig{EvictionHard: map[string]string{SignalMemory: "0.0%"}}, []MemoryThreshold{{Signal: SignalMemory, Hard: true}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.k.MemoryThresholds()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("thresholds (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseThreshold(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want MemoryThreshold
		ok   bool
		err  string
	}{
		{in: "100Mi", want: MemoryThreshold{Bytes: 100 * mib}, ok: true},
		{in: "1G", want: MemoryThreshold{Bytes: 1e9}, ok: true},
		{in: "1e3", want: MemoryThreshold{Bytes: 1000}, ok: true},
		{in: "500m", want: MemoryThreshold{Bytes: 1}, ok: true},
		{in: "1E100", want: MemoryThreshold{Bytes: math.MaxInt64}, ok: true},
		{in: "5%", want: MemoryThreshold{Percent: 5}, ok: true},
		{in: "2.5%", want: MemoryThreshold{Percent: 2.5}, ok: true},
		{in: "5%%", want: MemoryThreshold{Percent: 5}, ok: true}, // as the kubelet trims it
		{in: "0%"}, {in: "100%"},
		{in: "101%", err: "outside 0 to 100"},
		{in: "-1%", err: "outside 0 to 100"},
		{in: "NaN%", err: "outside 0 to 100"},
		{in: "%", err: `percentage "%"`},
		{in: "", err: `quantity ""`},
		{in: "0", err: "not positive"},
		{in: "-5Mi", err: "not positive"},
		{in: "memory.available<100Mi", err: "quantity"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			got, ok, err := parseThreshold(tc.in)
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("error %v, want %q", err, tc.err)
			}
			if got != tc.want || ok != tc.ok {
				t.Errorf("%+v, %v; want %+v, %v", got, ok, tc.want, tc.ok)
			}
		})
	}
}

func TestReserved(t *testing.T) {
	system, kube, err := KubeletConfig{SystemReserved: map[string]string{"memory": "1Gi", "cpu": "1"}}.Reserved()
	if system != gib || kube != 0 || err != nil {
		t.Errorf("%d, %d, %v", system, kube, err)
	}
	if _, _, err := (KubeletConfig{KubeReserved: map[string]string{"memory": ""}}).Reserved(); err == nil || !strings.HasPrefix(err.Error(), `kubeReserved memory ""`) {
		t.Errorf("error %v", err)
	}
}

func FuzzParseThreshold(f *testing.F) {
	for _, s := range []string{"100Mi", "5%", "0%", "1e-3", "-1", "99.99999999%", "9E"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		th, ok, err := parseThreshold(s)
		if err != nil || !ok {
			if th != (MemoryThreshold{}) {
				t.Fatalf("%q: %+v with ok %v, error %v", s, th, ok, err)
			}
			return
		}
		if th.Percent != 0 && th.Bytes != 0 || th.Percent < 0 || th.Percent > 100 {
			t.Fatalf("%q: %+v", s, th)
		}
	})
}
