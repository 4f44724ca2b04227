package policy

import "math"

// Held is what a pod's cgroup holds that its exit may give back, in bytes of RAM. Its zero value means not known.
type Held struct {
	Known bool
	Anon  uint64 // anonymous memory in RAM (memory.stat anon; v1 total_rss)
	Shmem uint64 // shared memory and tmpfs pages charged to it, in RAM (shmem; v1 total_shmem); 0 where the kernel has no figure
	Zswap uint64 // what its compressed pages take in RAM (v2 zswap; kernel 5.19)
}

// Release returns what the exit of p gives back, and how much of its shared memory may outlive it.
//
// Counted are anonymous memory, charged shared memory and the compressed pages. Not counted, because it stays or is not
// RAM: page cache (the files outlive the pod, and their cache with them), swap on a disk, and kernel memory of the pod
// (slab, page tables), of which part goes, but nobody says how much.
//
// Shared memory goes with the pod when it is shared between its own processes, in its /dev/shm, or in its emptyDir of
// medium Memory (freed when the volume is taken down, a moment after the last exit). It stays in a tmpfs of the node
// (hostPath) and in the node's shared memory (hostIPC). Its cgroup does not tell which is which, so a pod that has such a
// place, or whose volumes are not known, is promised none of it.
func (h Held) Release(p *Pod) (release, survives uint64) {
	release = plus(h.Anon, h.Zswap)
	if p.HostIPC || !p.Volumes.Known || p.Volumes.HostPath {
		return release, h.Shmem
	}
	return plus(release, h.Shmem), 0
}

// plus adds up and stops at the largest value.
func plus(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
