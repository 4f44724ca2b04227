package policy

import (
	"math"
	"testing"
)

func TestHeldRelease(t *testing.T) {
	full := Held{Known: true, Anon: 100, Shmem: 30, Zswap: 7}
	for _, tc := range []struct {
		name              string
		held              Held
		pod               Pod
		release, survives uint64
	}{
		{"its own volumes alone", full, Pod{Volumes: Volumes{Known: true, EmptyDir: true, PVC: true}}, 137, 0},
		{"emptyDir in memory goes with it", full, Pod{Volumes: Volumes{Known: true, MemoryEmptyDir: true}}, 137, 0},
		{"a tmpfs of the node may stay", full, Pod{Volumes: Volumes{Known: true, MemoryEmptyDir: true, HostPath: true}}, 107, 30},
		{"shared memory of the node may stay", full, Pod{HostIPC: true, Volumes: Volumes{Known: true}}, 107, 30},
		{"volumes not known", full, Pod{}, 107, 30},
		{"nothing held", Held{Known: true}, Pod{}, 0, 0},
		{"more than can be", Held{Known: true, Anon: math.MaxUint64, Shmem: 1, Zswap: 1}, Pod{Volumes: Volumes{Known: true}}, math.MaxUint64, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if release, survives := tc.held.Release(&tc.pod); release != tc.release || survives != tc.survives {
				t.Errorf("release %d, survives %d, want %d, %d", release, survives, tc.release, tc.survives)
			}
			c := Rank(input(Need{}, pod("it", func(c *Candidate) {
				c.Reading.Held, c.Pod.Volumes, c.Pod.HostIPC = tc.held, tc.pod.Volumes, tc.pod.HostIPC
			})))[0]
			if c.Reading.Release != tc.release || c.Survives != tc.survives {
				t.Errorf("the candidate releases %d, survives %d", c.Reading.Release, c.Survives)
			}
		})
	}
	// Held not known: the release is the caller's.
	if c := Rank(input(Need{}, pod("it", size(5))))[0]; c.Reading.Release != 5*testMiB || c.Survives != 0 {
		t.Errorf("releases %d, survives %d", c.Reading.Release, c.Survives)
	}
}

// What may survive decides between two that are alike: the one that really gives its memory back covers.
func TestSharedMemoryThatStaysDoesNotCover(t *testing.T) {
	held := func(h Held, v Volumes) func(*Candidate) {
		h.Known, v.Known = true, true
		return func(c *Candidate) { c.Reading.Held, c.Pod.Volumes = h, v }
	}
	in := input(byUsed(500), pod("a", size(600), held(Held{Shmem: 600 * testMiB}, Volumes{HostPath: true})), pod("b", size(600), held(Held{Shmem: 600 * testMiB}, Volumes{MemoryEmptyDir: true})))
	if d := Decide(in); len(d.Set) != 1 || d.Pods[d.Set[0]].Pod.Name != "b" || find(d.Pods, "a").Excluded == "" {
		t.Errorf("set %v: %s", setNames(d), d.Reason)
	}
}
