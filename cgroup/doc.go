// Package cgroup reads the memory of a node's control groups: on cgroup v1, hybrid and v2, for nodes of the cgroupfs
// and of the systemd driver. It finds the hierarchies (Open), the pods in them (Tree.Pods), and reads one cgroup through
// handles that stay open (Tree.Group): usage, the parts of memory.stat, limits, events, pressure, throttling, and the
// node's /proc/meminfo, /proc/vmstat and /proc/pressure (Tree.Node). A Watcher tells of cgroups that come and go, a Waker of
// memory that runs short. What it changes are page cache and memory.high of one cgroup (Tree.Reclaim, Tree.SetHigh), off the
// sampling path. It knows nothing of Kubernetes but the names that the kubelet and the container runtimes give to directories.
//
// Group and Node are made for the one goroutine that samples: they take no lock, allocate nothing once their files are
// open, and refuse a second goroutine with ErrInUse.
//
// Three values are kept apart everywhere: a number, Unlimited and Absent. No error ever becomes a zero: a reader
// that fails leaves every field of the caller's struct Absent. A cgroup that was removed reads as ErrGone through the
// handle that was opened on it, also when another cgroup of the same name took its place.
//
// The kernel itself is not exact to the byte: it charges in batches of 64 pages per CPU, and memory.stat may lag by the
// same amount per CPU (mm/memcontrol.c, MEMCG_CHARGE_BATCH). On kernel 6.18 memory.stat of a cgroup with children was
// seen to stand still for up to 2 s, the period of the kernel's own flush, while a child grew by 469 MiB; usage stayed
// right. Reading memory.stat of the growing child too, in each round, bounded it to 8 MiB and 42 ms; on 6.1 and 6.12 it
// did not happen. File formats: Documentation/admin-guide/cgroup-v2.rst and
// Documentation/admin-guide/cgroup-v1/memory.rst of the kernel.
//
// It is not built on github.com/containerd/cgroups: Mode there knows /sys/fs/cgroup alone, not a host mounted elsewhere; v1
// hierarchies and notifications go by path, not by the directory that was opened; and Stat has 0, without an error, for files
// that it cannot read. Tests compare modes and readings with it.
package cgroup
