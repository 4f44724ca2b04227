package brake

import (
	"errors"
	"testing"

	"spillway/cgroup"
)

func TestCgroupsLook(t *testing.T) {
	tree, err := cgroup.Open(cgroup.Options{Root: "../../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup", AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	const path = "/kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69"
	g, err := tree.Group(path)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	usage, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	limit, err := g.Limit()
	if err != nil {
		t.Fatal(err)
	}
	k := Cgroups(tree)
	if f, err := k.Look(path, g.ID()); err != nil || f != (Figures{Usage: usage, High: cgroup.Unlimited, Limit: limit}) {
		t.Errorf("%+v, %v", f, err)
	}
	for name, try := range map[string]func() (Figures, error){
		"another id": func() (Figures, error) { return k.Look(path, g.ID()+1) },
		"no cgroup":  func() (Figures, error) { return k.Look(path+"x", 1) },
	} {
		if f, err := try(); !errors.Is(err, cgroup.ErrGone) || f.Usage != cgroup.Absent || f.High != cgroup.Absent {
			t.Errorf("%s: %+v, %v, want ErrGone", name, f, err)
		}
	}
}
