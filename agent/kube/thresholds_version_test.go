package kube

import (
	"strings"
	"testing"
)

func TestRootFormulaOf(t *testing.T) {
	for _, tc := range []struct {
		version string
		want    RootFormula
		err     string
	}{
		{"v1.36.3", RootFromCgroup, ""},
		{"v1.33.0", RootFromCgroup, ""},
		{"v1.29.0", RootFromCgroup, ""},
		{"v1.29.1-gke.1589018", RootFromCgroup, ""},
		{"v1.30.4+k3s1", RootFromCgroup, ""},
		{"v1.29.0-rc.1", RootFromCgroup, ""},
		{"v1.28.15", RootFromMeminfo, ""},
		{"v1.28.15-eks-a5df82a", RootFromMeminfo, ""},
		{"v1.25.0", RootFromMeminfo, ""},
		{"v1.24.17", RootFromMeminfo, "outside v1.25 to v1.36: its working set of the node is taken as MemTotal - MemFree - inactive_file"},
		{"v1.37.0-alpha.1", RootFromCgroup, "outside v1.25 to v1.36: its working set of the node is taken as anon + file - inactive_file"},
		{"", RootFromCgroup, `kubelet version "": want v1`},
		{"1.36.3", RootFromCgroup, "want v1"},
		{"v2.0.0", RootFromCgroup, "want v1"},
		{"v1.36", RootFromCgroup, "want v1"},
		{"v1.36.", RootFromCgroup, "want v1"},
		{"v1.36.x", RootFromCgroup, "want v1"},
		{"v1.x.3", RootFromCgroup, `minor "x": not a number`},
		{"v1.-3.3", RootFromCgroup, `minor "-3": not a number`},
		{"v1.99999.0", RootFromCgroup, `minor "99999": not a number`},
	} {
		t.Run(tc.version, func(t *testing.T) {
			got, err := RootFormulaOf(tc.version)
			if got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
			switch {
			case tc.err == "" && err != nil:
				t.Errorf("error %v", err)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error %v, want %q in it", err, tc.err)
			}
		})
	}
}

func FuzzRootFormulaOf(f *testing.F) {
	for _, v := range []string{"v1.36.3", "v1.28.15-eks-a5df82a", "v1.30.4+k3s1", "v1", "", "v1.1.1"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, version string) {
		got, err := RootFormulaOf(version)
		if err == nil && !strings.HasPrefix(version, "v1.") {
			t.Fatalf("%q is %v without an error", version, got)
		}
		if got != RootFromCgroup && got != RootFromMeminfo {
			t.Fatalf("%q is formula %d", version, got)
		}
	})
}
