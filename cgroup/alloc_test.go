package cgroup

import (
	"errors"
	"testing"

	"spillway/test/race"
)

// TestNothingIsAllocated reads real files, with the caller's structs on its stack, where a reader that leaks its argument
// would move them to the heap.
func TestNothingIsAllocated(t *testing.T) {
	if race.Enabled {
		t.Skip("needs a build without the race detector, which moves buffers to the heap")
	}
	tree := host(t)
	cg := newGroup(t, tree)
	g := cg.open(t, tree)
	root, err := tree.Group("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	node := tree.Node()
	defer node.Close()
	for name, f := range map[string]func() error{
		"Memory":          func() error { var m Memory; return g.Memory(&m) },
		"Memory of /":     func() error { var m Memory; return root.Memory(&m) },
		"Usage":           func() error { return second(g.Usage()) },
		"Usage of /":      func() error { return second(root.Usage()) },
		"Events":          func() error { var e Events; return g.Events(&e) },
		"PressureOf":      func() error { var p Pressure; return g.PressureOf(MemoryPressure, &p) },
		"PressureOf cpu":  func() error { var p Pressure; return g.PressureOf(CPUPressure, &p) },
		"CPU":             func() error { var c CPU; return g.CPU(&c) },
		"Meminfo":         func() error { var m Meminfo; return node.Meminfo(&m) },
		"Vmstat":          func() error { var v Vmstat; return node.Vmstat(&v) },
		"Node.PressureOf": func() error { var p Pressure; return node.PressureOf(MemoryPressure, &p) },
		"shared Meminfo":  func() error { var m Meminfo; return tree.Meminfo(&m) },
		"NodePressure":    func() error { var p Pressure; return tree.NodePressure(&p) },
	} {
		t.Run(name, func(t *testing.T) {
			var ue *UnsupportedError
			if err := f(); errors.As(err, &ue) {
				t.Skip(err)
			}
			var err error
			if n := testing.AllocsPerRun(100, func() { err = f() }); n != 0 || err != nil {
				t.Errorf("%v allocations, %v", n, err)
			}
		})
	}
}
