package observe

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"spillway/agent/podmap"
	"spillway/cgroup"
)

// What a pod leaves is reclaimed when nobody is left who reads it again: at most the sandbox, when the rest is known to be
// gone.
func TestEnded(t *testing.T) {
	unreadable := errors.New("unreadable")
	for _, tc := range []struct {
		name  string
		apps  []string
		procs map[string]int // by path; one that is absent is gone, -1 cannot be read
		want  bool
	}{
		{"all have ended", []string{"/pod/app"}, map[string]int{"/pod": 0, "/pod/app": 0}, true},
		{"sandbox left", []string{"/pod/app", "/pod/side"}, map[string]int{"/pod": 1, "/pod/app": 0}, true},
		{"container left, no sandbox", []string{"/pod/app"}, map[string]int{"/pod": 1, "/pod/app": 1}, false},
		{"sandbox and container left", []string{"/pod/app"}, map[string]int{"/pod": 2, "/pod/app": 1}, false},
		{"one of two containers left, no sandbox", []string{"/pod/app", "/pod/side"}, map[string]int{"/pod": 1, "/pod/app": 0, "/pod/side": 1}, false},
		{"one left, containers have no names", nil, map[string]int{"/pod": 1}, false},
		{"all have ended, containers have no names", nil, map[string]int{"/pod": 0}, true},
		{"one left, container cannot be read", []string{"/pod/app"}, map[string]int{"/pod": 1, "/pod/app": -1}, false},
		{"pod cannot be read", []string{"/pod/app"}, map[string]int{"/pod": -1, "/pod/app": 0}, false},
		{"pod is gone", []string{"/pod/app"}, nil, false},
	} {
		p := &podmap.Pod{Path: "/pod", Containers: []podmap.Container{{Path: "/pod/unnamed"}, {Name: podmap.Sandbox, Path: "/pod/box"}}}
		for _, path := range tc.apps {
			p.Containers = append(p.Containers, podmap.Container{Name: "app", Path: path})
		}
		got := Ended(func(path string) (int, error) {
			switch n, ok := tc.procs[path]; {
			case !ok:
				return 0, cgroup.ErrGone
			case n < 0:
				return 0, unreadable
			default:
				return n, nil
			}
		}, p)
		if got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// TestLeft: what is still charged is told when at most the sandbox's process is left, and of this cgroup only.
func TestLeft(t *testing.T) {
	for _, tc := range []struct {
		name                   string
		pod, app, sandbox      string // their cgroup.procs; "-": no such cgroup
		usage                  string
		otherID, alone, noName bool // another cgroup has the path; the pod has no containers; the application has no name
		want                   uint64
		ok                     bool
	}{
		{name: "running", app: "7\n8\n", sandbox: "5\n", usage: "100\n"},
		{name: "one process left beside the sandbox's", app: "7\n", sandbox: "5\n", usage: "100\n"},
		{name: "the sandbox left", sandbox: "5\n", usage: "8192\n", want: 8192, ok: true},
		{name: "the sandbox left, the container's cgroup removed", app: "-", sandbox: "5\n", usage: "8192\n", want: 8192, ok: true},
		{name: "all have ended", usage: "4096\n", want: 4096, ok: true},
		{name: "nothing is charged", usage: "0\n", want: 0, ok: true},
		{name: "containers removed", app: "-", sandbox: "-", alone: true, usage: "4096\n", want: 4096, ok: true},
		{name: "a process of its own", pod: "9\n", app: "-", sandbox: "-", alone: true, usage: "4096\n"},
		{name: "one left, and it may be the application's", app: "7\n", noName: true, usage: "4096\n"},
		{name: "another pod has the path", usage: "4096\n", otherID: true},
		{name: "usage cannot be read", usage: "lots\n"},
		{name: "gone", pod: "-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			write := func(path, text string) {
				if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			mkdir := func(path, procs string) {
				if procs == "-" {
					return
				}
				if err := os.MkdirAll(filepath.Join(root, path), 0o755); err != nil {
					t.Fatal(err)
				}
				write(path+"/cgroup.procs", procs)
				write(path+"/memory.stat", "anon 1\n")
				write(path+"/memory.current", tc.usage)
				write(path+"/memory.max", "max\n")
			}
			write("cgroup.controllers", "cpu memory\n")
			tree, err := cgroup.Open(cgroup.Options{Root: root, Proc: t.TempDir(), AnyFilesystem: true})
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			m := &podmap.Pod{UID: "u", Path: "/pod"}
			mkdir("pod", tc.pod)
			if tc.pod != "-" {
				mkdir("pod/app", tc.app)
				mkdir("pod/box", tc.sandbox)
				g, err := tree.Group("/pod")
				if err != nil {
					t.Fatal(err)
				}
				m.CgroupID = g.ID()
				g.Close()
			}
			if tc.otherID {
				m.CgroupID++
			}
			if !tc.alone {
				m.Containers = []podmap.Container{{Name: "app", Path: "/pod/app"}, {Name: podmap.Sandbox, Path: "/pod/box"}}
			}
			if tc.noName {
				m.Containers = m.Containers[1:]
			}
			if got, ok := Left(tree, m); ok != tc.ok || ok && got != tc.want {
				t.Errorf("%d, %v; want %d, %v", got, ok, tc.want, tc.ok)
			}
		})
	}
}
