// Package cluster runs a real Kubernetes on this machine for tests: etcd, API server, controller manager,
// scheduler, containerd and kubelet, all built from their Go modules, and takes it away without a trace.
//
// # Isolation
//
// [Up] starts one process with a network, mount and PID namespace of its own; it is process 1 there. Everything else
// is below it. When it ends, by whatever cause, the kernel ends every component, shim and container with it, and all
// mounts, bridges and pod namespaces go with the last of them. Only the kubelet's cgroups are visible outside, because
// the cgroup mounts are the machine's (the node's memory pressure is to be real); [Down] and the next Up remove what a
// killed cluster left of them. The kubelet's cgroup root stays "/", as on a real node, and that is why a machine
// has at most one cluster at a time. Up refuses to start while processes of another kubelet are in /kubepods.
//
// Inside, every path is that of a real node: /var/lib/kubelet/config.yaml, /run/containerd/containerd.sock,
// /etc/cni/net.d and so on. /run, /etc, /opt, /var/lib and /var/log are the cluster's own. /sys is the machine's. The
// kernel settings that a kubelet would change are hidden behind files, so the machine keeps its own.
//
// The API server listens on 10.96.0.1:443, the address of the kubernetes Service, which lies on the namespace's
// loopback: pods reach it without kube-proxy. Nothing leads out of the namespace.
//
// # Virtual nodes
//
// [Cluster.AddVM] adds a node with pure cgroup v2 and a Debian kernel in a virtual machine, by QEMU's software emulation.
// QEMU is a child of the first process and ends with it. Its network device lies in a bridge with this machine's node:
// the API server reaches the kubelet there, and pods of all nodes reach each other and 10.96.0.1. What it takes of this
// machine's memory it takes before it boots, and the kubelet here gets a new threshold then. Inside, process 1 serves
// the harness's requests without authentication, because nothing leads into the namespace; pods could ask it too.
//
// # Lifetime
//
// The first process holds the reading end of a pipe whose writing end is in the caller. An end of file before the
// caller said "detach" makes it shut down: a test binary that dies takes its cluster along.
//
// # Folders
//
// The run folder (see [Run]) is on the machine's own disk, visible inside under the same path, and is kept until the
// next start: kubeconfig (usable inside only, see [Cluster.Kubectl]), log/ with one file per component, audit.log (every
// API request, with bodies for evictions) and pods/, and disk/ for tests that need files on a real disk.
package cluster
