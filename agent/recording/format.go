package recording

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"time"

	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// Version is the format that this package writes. It grows with the rules of package pressure and policy too: a recording of an
// older version is replayed with the rules of today, and what comes out otherwise is told from its decisions, not from its sums.
//
//	1  the first
//	2  stand by; steps; bounds; the kubelet's choice
//	3  what a pod gained in a minute; peaks that came back; measured calls and cuts
const Version = 3

// Header says what was recorded where.
type Header struct {
	Agent   string `json:"agent"` // version of the program
	Node    string `json:"node"`
	Mode    string `json:"mode"`
	SelfUID string `json:"selfUID,omitempty"`
	Config  string `json:"config"` // the effective configuration, YAML
}

// line is one line of a recording: exactly one of the pointers is set.
type line struct {
	Start  *start      `json:"start,omitempty"`
	Pod    *policy.Pod `json:"pod,omitempty"` // facts, before the first line that names its UID and when they change
	Look   *look       `json:"look,omitempty"`
	Read   *pods       `json:"read,omitempty"`
	Decide *decide     `json:"decide,omitempty"`
	Plan   *plan       `json:"plan,omitempty"`
	Event  *Event      `json:"event,omitempty"`
	End    string      `json:"end,omitempty"`
}

// start begins an episode.
type start struct {
	Format  string      `json:"format"`
	Version int         `json:"version"`
	At      time.Time   `json:"at"`
	Header  Header      `json:"header"`
	State   judge.State `json:"state"`
}

const formatName = "spillway recording"

// look is a judge.Look and its answer. What is nil is as in the look before.
type look struct {
	At          time.Time             `json:"at"`
	Samples     []pressure.Sample     `json:"samples,omitempty"`
	Slow        []pressure.Slow       `json:"slow,omitempty"`
	Thresholds  *[]pressure.Threshold `json:"thresholds,omitempty"`
	Allocatable *pressure.Bytes       `json:"allocatable,omitempty"`
	Credit      *pressure.Credit      `json:"credit,omitempty"`
	Explained   *pressure.Share       `json:"explained,omitempty"`
	Sum         string                `json:"sum"` // of the verdict
}

// pods is a judge.Pods. Order and History are nil when they are as before; Changed has the pods that are not.
type pods struct {
	Now        time.Time       `json:"now"`
	Order      *[]string       `json:"order,omitempty"` // UIDs
	Changed    []reading       `json:"changed,omitempty"`
	History    *policy.History `json:"history,omitempty"`
	InFlight   int             `json:"inFlight,omitempty"`
	CacheOwner string          `json:"cacheOwner,omitempty"`
	Timing     policy.Timing   `json:"timing,omitzero"`
	Sum        string          `json:"sum"` // of the ranking
}

// reading is the part of a candidate that goes into a decision and is no fact of the pod.
type reading struct {
	UID      string           `json:"uid"`
	Workload *policy.Workload `json:"workload,omitempty"`
	Cluster  *policy.Cluster  `json:"cluster,omitempty"`
	Reading  policy.Reading   `json:"reading"`
	Refused  string           `json:"refused,omitempty"`
	Learned  time.Duration    `json:"learned,omitempty"`

	Unreclaimable string `json:"unreclaimable,omitempty"`
	Reclaiming    bool   `json:"reclaiming,omitempty"`
	Reclaimed     bool   `json:"reclaimed,omitempty"`
}

// decide is a decision that was asked for, and the answer.
type decide struct {
	Pods     pods     `json:"pods"`
	Held     string   `json:"held,omitempty"` // why nobody was evicted all the same
	ID       string   `json:"id,omitempty"`   // of the agent's record
	Decision Decision `json:"decision"`
	Sum      string   `json:"sum"` // of the whole decision
}

// plan is a look at page cache, and the answer.
type plan struct {
	Pods   pods   `json:"pods"`
	State  string `json:"state"`
	Reason string `json:"reason"`
	Sum    string `json:"sum"` // of the whole plan
}

// Decision is what a reader wants to see of one.
type Decision struct {
	State  string   `json:"state"`
	Reason string   `json:"reason"`
	Victim string   `json:"victim,omitempty"` // namespace/name
	Score  float64  `json:"score,omitempty"`
	Set    []string `json:"set,omitempty"`

	Without string `json:"without,omitempty"` // the pod that the kubelet or the kernel would have taken
}

func short(d *policy.Decision) Decision {
	out := Decision{State: d.State, Reason: d.Reason, Without: d.Without.Pod}
	for k, i := range d.Set {
		c := &d.Pods[i]
		if k == 0 {
			out.Victim, out.Score = c.Pod.Key(), c.Score
		}
		out.Set = append(out.Set, c.Pod.Key())
	}
	return out
}

// Event is something that happened meanwhile: an OOM kill, the answer to an Eviction call. It is kept for people.
type Event struct {
	At   time.Time       `json:"at"`
	Kind string          `json:"kind"`
	Data json.RawMessage `json:"data"`
}

// ranked is the part of a candidate that comes out of a ranking.
type ranked struct {
	UID                    string
	Leader, Covers, Grower bool
	Protection             policy.Protection
	Terms                  []policy.Term
	Score                  float64
	Lead, Hard             time.Duration
	Survives, Release      uint64
	Past                   policy.Past
	Excluded               string
	Rank                   int
}

func rankedPods(in []policy.Candidate) []ranked {
	out := make([]ranked, len(in))
	for i := range in {
		c := &in[i]
		past := c.Past
		past.Last = past.Last.UTC()
		out[i] = ranked{
			UID: c.Pod.UID, Leader: c.Leader, Covers: c.Covers, Grower: c.Grower, Protection: c.Protection, Terms: c.Terms, Score: c.Score, Lead: c.Lead, Hard: c.Hard,
			Survives: c.Survives, Release: c.Reading.Release, Past: past, Excluded: c.Excluded, Rank: c.Rank,
		}
	}
	return out
}

func sumRanking(r []policy.Candidate) string { return sum(rankedPods(r)) }

func sumDecision(d *policy.Decision) string {
	whole := *d
	whole.Pods = nil
	return sum(whole, rankedPods(d.Pods))
}

func sumPlan(c *policy.CachePlan) string {
	type take struct {
		UID   string
		Bytes uint64
		All   bool
	}
	takes := make([]take, len(c.Takes))
	for i, t := range c.Takes {
		takes[i] = take{t.Pod.UID, t.Bytes, t.All}
	}
	return sum(c.State, c.Reason, c.Waiting, takes)
}

// sum is a hash of the values' JSON, which has all digits of every number. Two answers with the same sum are taken as the same,
// bit for bit.
func sum(values ...any) string {
	h := fnv.New64a()
	for _, v := range values {
		data, err := json.Marshal(v)
		if err != nil { // a number that JSON has no word for
			data = fmt.Appendf(nil, "%+v", v)
		}
		h.Write(data)
	}
	return fmt.Sprintf("%016x", h.Sum64())
}
