package policy

import "fmt"

// Cluster is what the cluster outside this node says about evicting one pod. It is asked for only from alert on, for the
// first candidates, and may be up to two minutes old; a nil Cluster means that nobody was asked. Values are shared and
// must not be written to.
type Cluster struct {
	Budget Headroom
	Scaler Scaler
	Room   Room
}

// Headroom sums up the PodDisruptionBudgets that select a pod.
type Headroom struct {
	Known   bool
	Count   int    // of budgets that select the pod; the API server refuses every eviction of a pod that has two
	Name    string // of all that select it
	Allowed int32  // disruptions that the only one allows now
	Why     string // it is not known
}

// Scaler is the HorizontalPodAutoscaler of a pod's workload.
type Scaler struct {
	Known            bool
	Namespace        string
	Name             string // empty: none scales it
	Min, Max         int32  // replicas
	Current, Desired int32
	Why              string // it is not known
}

// Room says whether the pod would find a place on another node.
type Room struct {
	Known  bool
	Single bool   // no other node would take pods: there is nothing to ask
	Fits   int    // nodes where it is known to fit
	Wanted int    // so many are asked for
	Need   uint64 // bytes that it is taken to need there
	Why    string // it is not known, or what stands against the other nodes
}

// scaling, at the minimum and at the maximum are told apart; a fixed size is both of the latter.
func (s *Scaler) scaling() bool { return s.Current != s.Desired }
func (s *Scaler) atMin() bool   { return s.Current <= s.Min }
func (s *Scaler) atMax() bool   { return s.Current >= s.Max }

// enough reports whether the pod is known to find a place elsewhere, or that nobody needs to ask.
func (m *Room) enough() bool { return m.Single || m.Fits >= m.Wanted }

// Stance is what follows when something is not known, or not as it should be.
type Stance string

// The two stances. The empty one is the default of its field.
const (
	Evict Stance = "evict" // the pod may be evicted
	Hold  Stance = "hold"  // it is held
)

// ClusterConfig says what follows from a Cluster. The zero value looks at budgets and room alone, and evicts where they
// are not known.
type ClusterConfig struct {
	// RespectScalers holds a pod whose HorizontalPodAutoscaler is at its minimum or scales just now. It never holds a pod
	// with a real part in the growth when the level is evict by ETA or critical.
	RespectScalers bool
	// NoRoom is for pods that find no room on other nodes, at critical; before that they are held. Nor does it hold a pod
	// with a real part in the growth then. Empty: hold.
	NoRoom Stance
	// What follows from a budget, scaler or room that is not known. Empty: evict. A budget that is not known is checked by
	// the API server itself, with the eviction, and its refusal leaves the round to the next candidate.
	UnknownBudget, UnknownScaler, UnknownRoom Stance
}

func (c *ClusterConfig) problems() []FieldProblem {
	var out []FieldProblem
	for _, s := range []struct {
		field string
		v     Stance
	}{{"noRoom", c.NoRoom}, {"unknown.budget", c.UnknownBudget}, {"unknown.scaler", c.UnknownScaler}, {"unknown.room", c.UnknownRoom}} {
		if s.v != "" && s.v != Evict && s.v != Hold {
			out = append(out, FieldProblem{s.field, fmt.Sprintf("%q, want %s or %s", string(s.v), Evict, Hold)})
		}
	}
	return out
}

// cluster is what is known, all unknown when nobody was asked.
func (c *Candidate) cluster() *Cluster {
	if c.Cluster != nil {
		return c.Cluster
	}
	return &notAsked
}

const whyNotAsked = "the API server was not asked yet"

var notAsked = Cluster{Headroom{Why: whyNotAsked}, Scaler{Why: whyNotAsked}, Room{Why: whyNotAsked}}

// budget says why the API server would refuse the eviction of c, "" when it would not. At critical the leader of the growth
// is asked for all the same when only the headroom is missing: what is known of it may be two minutes old.
func (c *Candidate) budget(in *Input) string {
	switch b := &c.cluster().Budget; {
	case !b.Known && in.Config.Cluster.UnknownBudget == Hold:
		return "its PodDisruptionBudgets are not known: " + b.Why
	case !b.Known || b.Count == 0:
		return ""
	case b.Count > 1:
		return fmt.Sprintf("%d PodDisruptionBudgets select it (%s), and the API server evicts no such pod", b.Count, b.Name)
	case b.Allowed <= 0 && !(c.Leader && in.Critical):
		return fmt.Sprintf("PodDisruptionBudget %s allows no disruption", b.Name)
	}
	return ""
}

// grew reports whether c has a part in a growth that the node feels. On a node that does not grow, a few KiB a second make a
// leader.
func (r *round) grew(c *Candidate) bool { return r.causes(c) && (r.in.NodeGrowth > 0 || c.Grower) }

// heldByScaler holds for one of the three ways in which an autoscaler stands against an eviction. Most autoscalers are at
// their minimum when a pod leaks.
func heldByScaler(r *round, c *Candidate, holds func(*Scaler) string) string {
	if !r.in.Config.Cluster.RespectScalers || r.grew(c) {
		return ""
	}
	return holds(&c.cluster().Scaler)
}

func scalerUnknown(r *round, c *Candidate) string {
	return heldByScaler(r, c, func(s *Scaler) string {
		return when(!s.Known && r.in.Config.Cluster.UnknownScaler == Hold, "its HorizontalPodAutoscaler is not known: "+s.Why)
	})
}

func scalerMinimum(r *round, c *Candidate) string {
	return heldByScaler(r, c, func(s *Scaler) string {
		return when(s.Known && s.Name != "" && s.atMin(), fmt.Sprintf("HorizontalPodAutoscaler %s is at its minimum of %d", s.Name, s.Min))
	})
}

func scalerScaling(r *round, c *Candidate) string {
	return heldByScaler(r, c, func(s *Scaler) string {
		return when(s.Known && s.Name != "" && s.scaling(), fmt.Sprintf("HorizontalPodAutoscaler %s scales from %d to %d", s.Name, s.Current, s.Desired))
	})
}

// noRoom holds no pod that causes the growth: it is evicted in any case, and when the kubelet does it, others are too.
func noRoom(r *round, c *Candidate) string {
	cfg := &r.in.Config.Cluster
	m := &c.cluster().Room
	switch {
	case r.grew(c), r.in.Critical && cfg.NoRoom == Evict:
		return ""
	case !m.Known && cfg.UnknownRoom == Hold:
		return "it is not known whether it fits on another node: " + m.Why
	case m.Known && !m.enough():
		return fmt.Sprintf("no room elsewhere: it fits on %d of %d needed nodes%s", m.Fits, m.Wanted, because(m.Why))
	}
	return ""
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// OfCluster reports whether the protection is made of what the API server said of workload, scaler or room: asking again
// may lift it.
func (p Protection) OfCluster() bool {
	switch p.Name {
	case ProtectJob, ProtectLastReplica, ProtectScaler, ProtectScalerMin, ProtectScaling, ProtectNoRoom:
		return true
	}
	return false
}

// Lines says what is known, in one line for each of budget, scaler and room. What to apply to hold a scale-down is only
// ever printed.
func (c *Cluster) Lines() []string {
	return []string{c.Budget.line(), c.Scaler.line(), c.Room.line()}
}

func (b *Headroom) line() string {
	switch {
	case !b.Known:
		return "PDB: not known: " + b.Why
	case b.Count == 0:
		return "PDB: none selects it"
	case b.Count > 1:
		return fmt.Sprintf("PDB %s: %d select it, and the API server evicts no such pod", b.Name, b.Count)
	}
	return fmt.Sprintf("PDB %s: %d %s allowed", b.Name, b.Allowed, plural(int(b.Allowed), "disruption"))
}

func (s *Scaler) line() string {
	state := ""
	switch {
	case !s.Known:
		return "HPA: not known: " + s.Why
	case s.Name == "":
		return "HPA: none scales its workload"
	case s.scaling():
		state = fmt.Sprintf("scales from %d to %d", s.Current, s.Desired)
	case s.atMax():
		state = fmt.Sprintf("at its maximum %d of %d", s.Current, s.Max)
	case s.atMin():
		return fmt.Sprintf("HPA %s: at its minimum %d of %d", s.Name, s.Current, s.Max)
	default:
		state = fmt.Sprintf("%d of %d to %d", s.Current, s.Min, s.Max)
	}
	return fmt.Sprintf(`HPA %s: %s; to hold scale-down: kubectl -n %s patch hpa %s --type=merge -p '{"spec":{"behavior":{"scaleDown":{"selectPolicy":"Disabled"}}}}'`,
		s.Name, state, s.Namespace, s.Name)
}

func (m *Room) line() string {
	switch {
	case m.Single:
		return "room: single node, no other one takes pods"
	case !m.Known:
		return "room: not known: " + m.Why
	}
	return fmt.Sprintf("room: %d of %d needed %s for %.0f MiB%s", m.Fits, m.Wanted, plural(m.Wanted, "node"), float64(m.Need)/(1<<20), because(m.Why))
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
