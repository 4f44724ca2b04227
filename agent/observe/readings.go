// Package observe reads what the loop judges: samples as the pure core takes them, what containers at their own limits have to
// do with a stall, the histories of up to 24 h, and what is left of a pod on its way out.
package observe

import (
	"spillway/agent/policy"
	"spillway/agent/sampler"
)

// Reading is one pod's figures; ok is false when one of them is missing.
func Reading(s *sampler.GroupSample) (r policy.Reading, ok bool) {
	usage, okUsage := s.Usage.Bytes()
	ws, okWS := s.WorkingSet.Bytes()
	cache, okCache := s.ActiveFile.Bytes()
	anon, okAnon := s.Anon.Bytes()
	shmem, okShmem := s.Shmem.Bytes()
	if !okShmem { // v1 kernels before 4.20 have no figure for it: what cannot be seen is not promised
		shmem = 0
	}
	zswap, _ := s.Zswap.Bytes() // 0 where the kernel has none
	held := policy.Held{Known: true, Anon: anon, Shmem: shmem, Zswap: zswap}
	return policy.Reading{Usage: usage, WorkingSet: ws, ActiveFile: cache, Held: held}, okUsage && okWS && okCache && okAnon
}
