package agent

import (
	"fmt"
	"testing"
	"time"

	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// TestDueIsBounded: what is said of each pod is said once a minute, and pods that are gone are forgotten.
func TestDueIsBounded(t *testing.T) {
	for _, perMinute := range []int{1, 30, 500} {
		l := loop{said: map[string]time.Time{}}
		now, most := time.Unix(1e9, 0), 0
		for minute := range 100 {
			for i := range perMinute {
				key := fmt.Sprint(minute, " ", i)
				if !l.due(now, key) {
					t.Fatalf("%s is not said", key)
				}
				if l.due(now.Add(time.Minute-1), key) {
					t.Fatalf("%s is said again within a minute", key)
				}
			}
			now = now.Add(time.Minute)
			most = max(most, len(l.said))
		}
		if most > maxSaid+perMinute {
			t.Errorf("%d keys with %d a minute", most, perMinute)
		}
		if l.due(now, "again"); l.due(now.Add(time.Second), "again") || !l.due(now.Add(time.Minute), "again") {
			t.Errorf("%d a minute: a key that repeats is not said once a minute", perMinute)
		}
	}
}

// Who holds the page cache that cannot be given back is the cause, at any level: no share of the node's pods holds its eviction.
func TestCacheOwnerIsNoRelief(t *testing.T) {
	l, c := &loop{}, &policy.Candidate{}
	for _, tc := range []struct {
		name   string
		level  pressure.Level
		owner  string
		grower bool
		want   bool
	}{
		{"a bystander at critical", pressure.Critical, "", false, false},
		{"a grower for used memory", pressure.Evict, "", true, false},
		{"a grower at critical", pressure.Critical, "", true, true},
		{"the owner of the cache", pressure.Evict, "uid", false, true},
		{"the owner of the cache at critical", pressure.Critical, "uid", false, true},
	} {
		l.verdict.Now, c.Grower = tc.level, tc.grower
		pods := &judge.Pods{CacheOwner: tc.owner}
		if got := l.ask(pods, c).Culprit; got != tc.want {
			t.Errorf("%s: culprit %v, want %v", tc.name, got, tc.want)
		}
		if l.ask(pods, nil).Culprit {
			t.Errorf("%s: a culprit although there is no victim", tc.name)
		}
	}
}
