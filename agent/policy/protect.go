package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Names of the protections, as records, status and metrics print them, in the order in which they are asked.
const (
	ProtectFinished    = "finished"
	ProtectSelf        = "self"
	ProtectTerminate   = "terminating"
	ProtectNamespace   = "namespace"
	ProtectStatic      = "static"
	ProtectDaemonSet   = "daemonset"
	ProtectPriority    = "critical-priority"
	ProtectCeiling     = "priority-ceiling"
	ProtectOwnerless   = "no-controller"
	ProtectOwner       = "controller-unknown"
	ProtectAnnotation  = "annotation"
	ProtectLabel       = "label"
	ProtectPrefix      = "name-prefix"
	ProtectJob         = "job-retries"
	ProtectLastReplica = "last-replica"
	ProtectEmptyDir    = "empty-dir"
	ProtectMemoryDir   = "memory-empty-dir"
	ProtectPVC         = "volume-claim"
	ProtectScaler      = "hpa-unknown"
	ProtectScalerMin   = "hpa-minimum"
	ProtectScaling     = "hpa-scaling"
	ProtectNoRoom      = "no-room"
	ProtectNotStarted  = "not-started"
	ProtectYoung       = "young"
	ProtectStarting    = "starting"
	ProtectBrief       = "brief-growth"
	ProtectCooldown    = "workload-cooldown"
	ProtectReplacement = "replacement-pending"
	ProtectAgain       = "evicted-again"
	ProtectReading     = "no-reading"
)

// AnnotationEvict is the annotation by which a pod opts out: AnnotationEvict: "never".
const AnnotationEvict = "spillway/evict"

// optedOut says how a pod opts out by an annotation, "" when it does not. A value that is not understood counts as "never": who
// wrote it meant something.
func optedOut(p *Pod, annotation string) string {
	switch v, there := p.Annotations[annotation]; {
	case !there:
		return ""
	case v == "never":
		return annotation + `: "never"`
	default:
		return fmt.Sprintf("%s: %q is not understood and counts as \"never\", the one value that there is", annotation, v)
	}
}

// criticalPriority is system-cluster-critical's value, the first of the range that Kubernetes reserves for the
// system (k8s.io/kubernetes/pkg/apis/scheduling, SystemCriticalPriority).
const criticalPriority = 2_000_000_000

// A start surge: this many pods started within the last surgeWindow protect all that did.
const (
	surgePods   = 10
	surgeWindow = time.Minute
)

// Protection says why a pod is not a candidate.
type Protection struct {
	Name   string // one of the Protect constants; empty means that nothing protects the pod
	Reason string
}

// round is what the rules of one ranking look at besides the pod.
type round struct {
	in     *Input
	surge  bool
	growth float64 // of all pods and the node, bytes per second: see nodeGrowth
}

// rule is one protection; why returns "" when it does not hold.
type rule struct {
	name string
	why  func(*round, *Candidate) string
}

// rules are all protections; the first that holds is the reason given. What is not known holds the pod: retries of a
// Job, and, where the config protects by them, replicas and volumes; of scalers and of room the config says whether. Labels,
// names and priorities are always known.
var rules = [...]rule{
	{ProtectFinished, func(_ *round, c *Candidate) string {
		return when(c.Pod.Finished, "the pod has finished and holds no memory")
	}},
	{ProtectSelf, func(r *round, c *Candidate) string {
		return when(r.in.SelfUID != "" && c.Pod.UID == r.in.SelfUID, "this is Spillway itself")
	}},
	{ProtectTerminate, func(_ *round, c *Candidate) string {
		return when(c.Pod.Terminating, "the pod is terminating already")
	}},
	{ProtectNamespace, func(r *round, c *Candidate) string {
		if slices.Contains(r.in.Config.ProtectedNamespaces, c.Pod.Namespace) {
			return fmt.Sprintf("namespace %s is protected by config", c.Pod.Namespace)
		}
		return ""
	}},
	{ProtectStatic, func(_ *round, c *Candidate) string {
		return when(c.Pod.Mirror, "a static pod: the kubelet would start it again at once")
	}},
	{ProtectDaemonSet, func(_ *round, c *Candidate) string {
		if c.Pod.Owner.Kind == "DaemonSet" {
			return fmt.Sprintf("DaemonSet %s would start it again on this node", c.Pod.Owner.Name)
		}
		return ""
	}},
	{ProtectPriority, func(_ *round, c *Candidate) string {
		if c.Pod.Priority >= criticalPriority {
			return fmt.Sprintf("priority %d (%s) is critical", c.Pod.Priority, c.Pod.PriorityClass)
		}
		return ""
	}},
	{ProtectCeiling, func(r *round, c *Candidate) string {
		if ceiling := r.in.Config.PriorityCeiling; ceiling != nil && c.Pod.Priority >= *ceiling {
			return fmt.Sprintf("priority %d (%s) is at or above the ceiling %d", c.Pod.Priority, c.Pod.PriorityClass, *ceiling)
		}
		return ""
	}},
	{ProtectOwnerless, func(_ *round, c *Candidate) string {
		return when(c.Pod.Owner.Kind == "", "no controller would create it again")
	}},
	{ProtectOwner, ownerUnknown},
	{ProtectAnnotation, func(_ *round, c *Candidate) string {
		return optedOut(c.Pod, AnnotationEvict)
	}},
	{ProtectLabel, func(r *round, c *Candidate) string {
		for _, s := range r.in.Config.ProtectedLabels {
			if s.Match == nil || s.Match(c.Pod.Labels) {
				return fmt.Sprintf("its labels match %q, protected by config", s.Text)
			}
		}
		return ""
	}},
	{ProtectPrefix, func(r *round, c *Candidate) string {
		for _, prefix := range r.in.Config.ProtectedPrefixes {
			if strings.HasPrefix(c.Pod.Name, prefix) {
				return fmt.Sprintf("its name begins with %q, protected by config", prefix)
			}
		}
		return ""
	}},
	{ProtectJob, jobRetries},
	{ProtectLastReplica, lastReplica},
	{ProtectEmptyDir, func(r *round, c *Candidate) string {
		return volume(r.in.Config.ProtectEmptyDir, c, c.Pod.Volumes.EmptyDir, "it has an emptyDir, whose content would be lost")
	}},
	{ProtectMemoryDir, func(r *round, c *Candidate) string {
		return volume(r.in.Config.ProtectMemoryEmptyDir, c, c.Pod.Volumes.MemoryEmptyDir, "it has an emptyDir in memory, whose content would be lost")
	}},
	{ProtectPVC, func(r *round, c *Candidate) string {
		return volume(r.in.Config.ProtectPVC, c, c.Pod.Volumes.PVC, "it has a claimed volume, which may not attach elsewhere")
	}},
	{ProtectScaler, scalerUnknown},
	{ProtectScaling, scalerScaling},
	{ProtectScalerMin, scalerMinimum},
	{ProtectNoRoom, noRoom},
	{ProtectNotStarted, func(_ *round, c *Candidate) string {
		return when(c.Pod.StartedAt.IsZero(), "the kubelet has not started it yet")
	}},
	{ProtectYoung, func(r *round, c *Candidate) string {
		age := r.in.Now.Sub(c.Pod.StartedAt)
		if !r.surge || c.Leader || age >= surgeWindow || c.Grower && r.in.imminent() {
			return ""
		}
		return fmt.Sprintf("started %.0f s ago with at least %d others", age.Seconds(), surgePods-1)
	}},
	{ProtectStarting, starting},
	{ProtectBrief, brief},
	{ProtectAgain, again},
	{ProtectCooldown, func(r *round, c *Candidate) string {
		if r.causes(c) {
			return ""
		}
		return c.Past.cooling(r.in)
	}},
	{ProtectReplacement, func(r *round, c *Candidate) string {
		if r.causes(c) {
			return ""
		}
		return c.Past.pending(r.in)
	}},
	{ProtectReading, func(_ *round, c *Candidate) string {
		return when(!c.Reading.Fresh, "no fresh reading of its memory")
	}},
}

// causes reports whether c has a real part in a growth that has to be answered now, by ETA or at critical, or has most of a
// growth. Only protections and budgets hold such a pod: the kubelet, which would be next, asks about nothing else, and takes
// innocent pods along.
func (r *round) causes(c *Candidate) bool { return c.Leader || c.Grower && r.in.Need.ByETA }

// protection returns the first protection that holds.
func (r *round) protection(c *Candidate) Protection {
	for i := range rules {
		if why := rules[i].why(r, c); why != "" {
			return Protection{rules[i].name, why}
		}
	}
	return Protection{}
}

// protections returns all that hold.
func (r *round) protections(c *Candidate) []Protection {
	var out []Protection
	for i := range rules {
		if why := rules[i].why(r, c); why != "" {
			out = append(out, Protection{rules[i].name, why})
		}
	}
	return out
}

func when(holds bool, why string) string {
	if holds {
		return why
	}
	return ""
}

// recreating are the kinds of controllers that are known to create an evicted pod again, "Kind.group": those of Kubernetes, and
// OpenKruise's, which are copies of them. Others, such as Workflow.argoproj.io, TaskRun.tekton.dev, a pod that owns its Spark
// executors, or VirtualMachineInstance.kubevirt.io, let what ran in the pod fail with it.
var recreating = map[string]bool{
	"ReplicaSet.apps": true, "StatefulSet.apps": true, "DaemonSet.apps": true, "ReplicationController": true, "Job.batch": true,
	"CloneSet.apps.kruise.io": true, "StatefulSet.apps.kruise.io": true, "DaemonSet.apps.kruise.io": true,
}

// ownerUnknown holds a pod whose controller is of a kind that is not known to create it again.
func ownerUnknown(r *round, c *Candidate) string {
	o := &c.Pod.Owner
	group, _, ok := strings.Cut(o.APIVersion, "/")
	if !ok {
		group = ""
	}
	kind := o.Kind
	if group != "" {
		kind += "." + group
	}
	switch {
	case o.Kind == "", recreating[kind], slices.Contains(r.in.Config.RecreatingOwners, kind):
		return ""
	case o.APIVersion == "": // the kinds of Kubernetes, of a recording without groups
		switch o.Kind {
		case "ReplicaSet", "StatefulSet", "DaemonSet", "Job":
			return ""
		}
	}
	return fmt.Sprintf("%s %s is not known to create it again (config protection.recreatingOwners adds kinds that do)", kind, o.Name)
}

func jobRetries(_ *round, c *Candidate) string {
	switch {
	case c.Pod.Owner.Kind != "Job":
		return ""
	case !c.Workload.KnownRetries:
		return fmt.Sprintf("Job %s: retries left are not known", c.Pod.Owner.Name)
	case c.Workload.Retries < 1:
		return fmt.Sprintf("Job %s has no retries left", c.Pod.Owner.Name)
	}
	return ""
}

// lastReplica leaves Jobs alone: what they lose is counted in retries.
func lastReplica(r *round, c *Candidate) string {
	o := &c.Pod.Owner
	switch {
	case !r.in.Config.ProtectLastReplica || o.Kind == "Job":
		return ""
	case !c.Workload.KnownReplicas:
		return fmt.Sprintf("replicas of %s %s are not known: it may be the last", o.Kind, o.Name)
	case c.Workload.Replicas <= 1:
		return fmt.Sprintf("the last replica of %s %s", o.Kind, o.Name)
	}
	return ""
}

func volume(protect bool, c *Candidate, has bool, why string) string {
	switch {
	case !protect:
		return ""
	case !c.Pod.Volumes.Known:
		return "its volumes are not known"
	}
	return when(has, why)
}

// surging reports whether so many pods started within the last minute that young ones are spared.
func surging(in *Input) bool {
	n := 0
	for i := range in.Pods {
		p := in.Pods[i].Pod
		if !p.StartedAt.IsZero() && in.Now.Sub(p.StartedAt) < surgeWindow {
			n++
		}
	}
	return n >= surgePods
}
