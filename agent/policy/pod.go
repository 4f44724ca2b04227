package policy

import (
	"strconv"
	"strings"
	"time"
)

// QoS is a pod's quality-of-service class, as the API server states it in status.qosClass.
type QoS string

// The three classes of Kubernetes.
const (
	BestEffort QoS = "BestEffort"
	Burstable  QoS = "Burstable"
	Guaranteed QoS = "Guaranteed"
)

// Pod is what a decision needs to know of one pod of this node from the API server: spec, status and metadata,
// no reading. Values are immutable once published; the maps and slices are shared and must not be written to.
type Pod struct {
	Namespace string
	Name      string
	UID       string

	QoS           QoS
	Priority      int32  // spec.priority, 0 when unset
	PriorityClass string // spec.priorityClassName

	Owner       Owner // metadata.ownerReferences entry with controller: true; the zero Owner means none
	Mirror      bool  // annotation kubernetes.io/config.mirror or config.source other than "api": a static pod
	Terminating bool  // metadata.deletionTimestamp is set
	GraceCut    bool  `json:",omitempty"` // and with a shorter grace period than its own
	Finished    bool  // phase Succeeded or Failed: it holds no memory that an eviction could give back
	Succeeded   bool  `json:",omitempty"` // phase Succeeded

	Labels      map[string]string
	Annotations map[string]string // only the keys that begin with "spillway/"

	CreatedAt time.Time     // metadata.creationTimestamp
	StartedAt time.Time     // status.startTime; zero while the kubelet has not seen the pod
	Grace     time.Duration // spec.terminationGracePeriodSeconds; 30 s when unset

	PreStopSleep time.Duration `json:",omitempty"` // the longest sleep that its preStop hooks show
	PreStopHook  bool          `json:",omitempty"` // it has a preStop hook that does something else
	Sidecars     bool          `json:",omitempty"` // it has init containers that are restarted: they end after the others

	Request    uint64 // effective memory request in bytes: sum of containers and sidecars, or the pod level; 0 means none
	Limit      uint64 // effective memory limit in bytes; meaningful only when LimitSet
	LimitSet   bool   // every container (or the pod level) has a memory limit
	Containers []Container

	Volumes Volumes
	HostIPC bool // spec.hostIPC: System V and POSIX shared memory of the node, which outlives the pod
}

// Volumes says which kinds of volumes a pod has. The zero value means that nobody looked: not the same as none.
type Volumes struct {
	Known          bool
	EmptyDir       bool // an emptyDir on disk: its content is lost with the pod, and no memory comes of it
	MemoryEmptyDir bool // an emptyDir of medium Memory: lost with the pod too, and its shared memory is freed
	PVC            bool // a persistentVolumeClaim or a generic ephemeral volume: it may not attach elsewhere
	HostPath       bool // a hostPath: a tmpfs of the node there keeps what the pod wrote
}

// Container is one container of a pod, init and ephemeral ones included.
type Container struct {
	Name     string
	ID       string // runtime id without its "containerd://" prefix; empty while it was never created
	Limit    uint64 // memory limit in bytes, 0 means none
	Running  bool
	Restarts int32

	StartedAt time.Time `json:",omitzero"` // of the run that Running is about; zero: not known
}

// Key returns "namespace/name".
func (p *Pod) Key() string { return p.Namespace + "/" + p.Name }

// began returns since when the newest of what runs in the pod runs, and whether anything does, as far as the API server tells.
func (p *Pod) began() (at time.Time, runs bool) {
	at, runs = p.StartedAt, len(p.Containers) == 0
	for i := range p.Containers {
		if c := &p.Containers[i]; c.Running {
			runs = true
			if c.StartedAt.After(at) {
				at = c.StartedAt
			}
		}
	}
	return at, runs
}

// Began returns since when the newest of what runs in the pod runs.
func (p *Pod) Began() time.Time {
	at, _ := p.began()
	return at
}

// Running reports whether a container of the pod runs, as far as the API server tells.
func (p *Pod) Running() bool {
	_, runs := p.began()
	return runs && !p.StartedAt.IsZero()
}

// Owner names the controller of a pod. The zero value means that no controller owns it.
type Owner struct {
	APIVersion string
	Kind       string
	Name       string
	UID        string
}

// CronJobOf returns the CronJob of a controller that is one of its Jobs, by the name: it ends in the minute that the Job was due,
// since 1970 (getJobName in pkg/controller/cronjob).
func CronJobOf(kind, name string) (string, bool) {
	i := strings.LastIndexByte(name, '-')
	if kind != "Job" || i < 1 {
		return "", false
	}
	minute, err := strconv.ParseUint(name[i+1:], 10, 32)
	return name[:i], err == nil && minute >= 1e7
}

// Workload is what the cluster knows of a pod's controller; it is fetched only at alert and above.
// A false Known* field means that nobody could be asked: not the same as zero.
type Workload struct {
	KnownReplicas bool
	Replicas      int32 // spec.replicas of the ReplicaSet, StatefulSet or ReplicationController

	KnownRetries bool
	Retries      int32 // Job: backoffLimit − failed pods, at least 0; an evicted Job pod needs one
}
