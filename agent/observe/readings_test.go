package observe

import (
	"testing"

	"spillway/agent/policy"
	"spillway/agent/sampler"
	"spillway/cgroup"
)

// TestReading: a figure that is missing makes the reading unusable, but for those that old kernels do not have.
func TestReading(t *testing.T) {
	whole := sampler.GroupSample{Usage: 100, WorkingSet: 80, Anon: 50, Shmem: 10, ActiveFile: 20, Swap: 5, Zswap: 2}
	for _, tc := range []struct {
		name   string
		change func(s *sampler.GroupSample)
		held   policy.Held
		ok     bool
	}{
		{"whole", func(*sampler.GroupSample) {}, policy.Held{Known: true, Anon: 50, Shmem: 10, Zswap: 2}, true},
		{"no zswap", func(s *sampler.GroupSample) { s.Zswap = cgroup.Absent }, policy.Held{Known: true, Anon: 50, Shmem: 10}, true},
		{"no shmem, v1 before 4.20", func(s *sampler.GroupSample) { s.Shmem = cgroup.Absent }, policy.Held{Known: true, Anon: 50, Zswap: 2}, true},
		{"no usage", func(s *sampler.GroupSample) { s.Usage = cgroup.Absent }, policy.Held{Known: true, Anon: 50, Shmem: 10, Zswap: 2}, false},
		{"no working set", func(s *sampler.GroupSample) { s.WorkingSet = cgroup.Absent }, policy.Held{Known: true, Anon: 50, Shmem: 10, Zswap: 2}, false},
		{"no anon", func(s *sampler.GroupSample) { s.Anon = cgroup.Absent }, policy.Held{Known: true, Shmem: 10, Zswap: 2}, false},
		{"no active file", func(s *sampler.GroupSample) { s.ActiveFile = cgroup.Absent }, policy.Held{Known: true, Anon: 50, Shmem: 10, Zswap: 2}, false},
	} {
		s := whole
		tc.change(&s)
		if r, ok := Reading(&s); ok != tc.ok || r.Held != tc.held || r.Fresh {
			t.Errorf("%s: %+v, %v, want %+v, %v", tc.name, r, ok, tc.held, tc.ok)
		}
	}
}
