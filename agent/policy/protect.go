package policy

import (
	"fmt"
	"slices"
	"time"
)

// Names of the protections, as records, status and metrics print them.
const (
	ProtectFinished   = "finished"
	ProtectSelf       = "self"
	ProtectTerminate  = "terminating"
	ProtectNamespace  = "namespace"
	ProtectStatic     = "static"
	ProtectDaemonSet  = "daemonset"
	ProtectPriority   = "critical-priority"
	ProtectOwnerless  = "no-controller"
	ProtectAnnotation = "annotation"
	ProtectJob        = "job-retries"
	ProtectYoung      = "young"
	ProtectReading    = "no-reading"
	ProtectNotStarted = "not-started"
)

// AnnotationEvict is the annotation by which a pod opts out: AnnotationEvict: "never".
const AnnotationEvict = "spillway/evict"

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

// protections returns the rules in the order in which they are asked; the first that answers is the reason given.
// A pod that cannot be judged (no reading, unknown Job state) is held: in doubt nobody is evicted.
func protections(in *Input, surge bool) []func(*Candidate) Protection {
	return []func(*Candidate) Protection{
		func(c *Candidate) Protection {
			if c.Pod.Finished {
				return Protection{ProtectFinished, "the pod has finished and holds no memory"}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if in.SelfUID != "" && c.Pod.UID == in.SelfUID {
				return Protection{ProtectSelf, "this is Spillway itself"}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if c.Pod.Terminating {
				return Protection{ProtectTerminate, "the pod is terminating already"}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if slices.Contains(in.Config.ProtectedNamespaces, c.Pod.Namespace) {
				return Protection{ProtectNamespace, fmt.Sprintf("namespace %s is protected by config", c.Pod.Namespace)}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if c.Pod.Mirror {
				return Protection{ProtectStatic, "a static pod: the kubelet would start it again at once"}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if c.Pod.Owner.Kind == "DaemonSet" {
				return Protection{ProtectDaemonSet, fmt.Sprintf("DaemonSet %s would start it again on this node", c.Pod.Owner.Name)}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if c.Pod.Priority >= criticalPriority {
				return Protection{ProtectPriority, fmt.Sprintf("priority %d (%s) is critical", c.Pod.Priority, c.Pod.PriorityClass)}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if c.Pod.Owner.Kind == "" {
				return Protection{ProtectOwnerless, "no controller would create it again"}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if v := c.Pod.Annotations[AnnotationEvict]; v == "never" {
				return Protection{ProtectAnnotation, AnnotationEvict + `: "never"`}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if c.Pod.Owner.Kind != "Job" {
				return Protection{}
			}
			if !c.Workload.KnownRetries {
				return Protection{ProtectJob, fmt.Sprintf("Job %s: retries left are not known", c.Pod.Owner.Name)}
			}
			if c.Workload.Retries < 1 {
				return Protection{ProtectJob, fmt.Sprintf("Job %s has no retries left", c.Pod.Owner.Name)}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if c.Pod.StartedAt.IsZero() {
				return Protection{ProtectNotStarted, "the kubelet has not started it yet"}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if surge && !c.Leader && in.Now.Sub(c.Pod.StartedAt) < surgeWindow {
				return Protection{ProtectYoung, fmt.Sprintf("started %.0f s ago with at least %d others", in.Now.Sub(c.Pod.StartedAt).Seconds(), surgePods-1)}
			}
			return Protection{}
		},
		func(c *Candidate) Protection {
			if !c.Reading.Fresh {
				return Protection{ProtectReading, "no fresh reading of its memory"}
			}
			return Protection{}
		},
	}
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
