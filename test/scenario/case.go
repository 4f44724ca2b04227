// Package scenario runs one memory load on the test cluster, with the kubelet alone or with Spillway, and measures what
// came of it from outside: the kernel's figures, the API server's pods, the kubelet's own records. The end-to-end cases
// and the demo are made of it, so that both sides of every table come from the same code.
package scenario

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"spillway/test/cluster"
)

// Mode says who looks after the node's memory.
type Mode string

// The modes of a run.
const (
	KubeletAlone Mode = "kubelet alone"
	Enforce      Mode = "spillway"
	Observe      Mode = "spillway, observe"
	NodeIdentity Mode = "spillway, node identity"
	OwnAgent     Mode = "spillway, own agent" // the case starts it, in Installed
)

// Part is what a workload is in its case.
type Part int

// Culprits may be evicted; innocents may not.
const (
	Innocent Part = iota
	Culprit
)

// Kind is the kind of controller that owns the pods of a workload.
type Kind string

// The kinds of workloads. The zero value is a Deployment.
const (
	Deployment Kind = "Deployment"
	DaemonSet  Kind = "DaemonSet" // one pod, on the node of the case
)

// Workload is one Deployment or DaemonSet of the test image.
type Workload struct {
	Name      string
	Kind      Kind   // default: Deployment
	Namespace string // default: the case's own
	Part      Part
	Args      []string // of the workload program; $GO is replaced by the file that starts the load, $DISK by a folder on disk
	Host      bool     // Args are a command instead, and have the node's files at /host: read-only, but for $DISK
	Replicas  int      // of a Deployment, default 1
	Requests  string   // inline YAML map, such as {cpu: 10m, memory: 64Mi}; empty: none
	Limits    string
	Grace     int    // seconds, default 30
	PreStop   int    // seconds that its preStop hook sleeps; 0: it has none
	Says      string // its log has this when it is ready for the load; empty: as soon as it runs
	Budget    bool   // a PodDisruptionBudget that allows none of its pods to go
	Annotate  string // inline YAML map of its pods' annotations; empty: none
	Anywhere  bool   // its pods may run on any node; the first ones run where the others are cordoned
	Scaler    [2]int // least and most replicas of a HorizontalPodAutoscaler by memory; 0: none
	Starts    bool   // its pods are the load: they are made when it starts, and the node stays open for them
}

// Case is one load and what its run waits for.
type Case struct {
	Name      string
	Note      string // what it is, for the table
	Workloads []Workload
	Quiet     time.Duration // no culprit ever leaves: run this long after the start of the load
	Longest   time.Duration // give up waiting for a culprit to leave after this long; default 2 min
	Leave     int           // culprit pods that leave before the run settles; default 1
	Settle    time.Duration // keep measuring after they have left; default 12 s: the kubelet looks every 10 s
	Rate      int64         // of the leak in bytes per second, for the table; 0: none
	Files     []string      // below $DISK, removed afterwards
	Margin    int64         // bytes that it can fill before the kubelet's threshold; default: the runner's
	Room      int64         // bytes that its pods take before the load starts, where that is more than the margin: the threshold of the case before is moved away first

	// Config changes the shipped manifests, which hold config.yaml as it is, before they are applied; nil leaves them.
	Config func(manifests string) string
	// Known lets the node get to know the pods first: the agent is installed before them, paused, with the threshold Room and the
	// margin away, and Known runs when they are ready. Then the threshold is set, and the agent starts again with what it learned:
	// while it runs it looks for another threshold every few minutes only.
	Known func(ctx context.Context, namespace string) error
	// Installed runs when the agent is ready, before the load starts; Start runs when it starts, for what no workload does;
	// Meanwhile runs beside the load.
	Installed func(ctx context.Context) error
	Start     func(ctx context.Context) error
	Meanwhile func(ctx context.Context, since func() time.Duration) error
}

// Neighbours are the innocent workloads of every case: two Burstable ones of equal size, and younger BestEffort pods.
func Neighbours() []Workload {
	return []Workload{
		{Name: "payment", Args: []string{"hold", "200Mi"}, Requests: "{cpu: 10m, memory: 150Mi}"},
		{Name: "cart", Args: []string{"hold", "200Mi"}, Requests: "{cpu: 10m, memory: 150Mi}"},
		{Name: "search", Args: []string{"hold", "20Mi"}, Replicas: 4},
	}
}

// Leak is the case of one leaking workload without a memory limit among its neighbours. rateMiB is in MiB/s.
func Leak(rateMiB int, ignoreSIGTERM bool) Case {
	args := []string{"leak", "--rate", fmt.Sprintf("%dMi", rateMiB), "--hold", "200Mi", "--wait-for", "$GO"}
	name, note := fmt.Sprintf("leak-%d", rateMiB), fmt.Sprintf("leak of %d MiB/s", rateMiB)
	longest := 2 * time.Minute
	if ignoreSIGTERM {
		args = append(args, "--ignore-sigterm")
		name, note = name+"-deaf", note+", ignores SIGTERM, 30 s grace"
		longest = 3 * time.Minute
	}
	leaker := Workload{Name: "recommendation", Part: Culprit, Args: args, Requests: "{cpu: 10m}"}
	return Case{Name: name, Note: note, Workloads: append([]Workload{leaker}, Neighbours()...), Longest: longest, Rate: int64(rateMiB) << 20}
}

// Reread is the case of a workload that reads a file of 2.6 GiB again and again, without a limit: no memory of its own
// grows, its active page cache does. It runs for so long: the kubelet looks every 10 s. rateMiB is in MiB/s; 0 reads what is
// cached at the speed of memory, so fast that the margin can go below 0 for a moment before anybody can act.
func Reread(long time.Duration, rateMiB int) Case {
	reader := Workload{Name: "batch", Part: Culprit, Args: []string{"reread", "--file", "$DISK/reread.bin", "--size", "2600Mi", "--rate", fmt.Sprintf("%dMi", rateMiB), "--wait-for", "$GO"}, Requests: "{cpu: 10m}",
		Says: "held 0 bytes"} // the file is written
	name, note := "reread-fast", "a pod re-reads a file of 2.6 GiB"
	if rateMiB > 0 {
		name, note = "reread", fmt.Sprintf("%s at %d MiB/s", note, rateMiB)
	}
	return Case{Name: name, Note: note, Workloads: append([]Workload{reader}, Neighbours()...), Quiet: long, Files: []string{"reread.bin"}}
}

// namespace of a run; names of runs never collide, so that a slow clean-up does not disturb the next run.
func (c Case) namespace(mode Mode) string {
	return "case-" + c.Name + "-" + strings.ReplaceAll(strings.ReplaceAll(string(mode), ", ", "-"), " ", "-")
}

// left counts the culprit pods that have left, one way or another.
func (c Case) left(fates []Fate) int {
	n := 0
	for _, f := range fates {
		if (f.Kubelet || f.OOMKilled || f.API && f.Gone > 0) && c.culprit(f.App) {
			n++
		}
	}
	return n
}

func (c Case) culprit(app string) bool {
	return slices.ContainsFunc(c.Workloads, func(w Workload) bool { return w.Name == app && w.Part == Culprit })
}

func (w Workload) kind() Kind {
	if w.Kind == "" {
		return Deployment
	}
	return w.Kind
}

// ref names its controller for kubectl.
func (w Workload) ref() string { return strings.ToLower(string(w.kind())) + "/" + w.Name }

// in is the namespace of a workload in a case.
func (w Workload) in(namespace string) string {
	if w.Namespace != "" {
		return w.Namespace
	}
	return namespace
}

// manifest renders one workload for one node.
func (w Workload) manifest(namespace, node, goFile, disk string) string {
	namespace = w.in(namespace)
	grace := w.Grace
	if grace == 0 {
		grace = 30
	}
	args := make([]string, len(w.Args))
	for i, a := range w.Args {
		args[i] = fmt.Sprintf("%q", strings.NewReplacer("$GO", goFile, "$DISK", disk).Replace(a))
	}
	resources := ""
	if w.Requests != "" {
		resources += "requests: " + w.Requests + ", "
	}
	if w.Limits != "" {
		resources += "limits: " + w.Limits
	}
	selector := fmt.Sprintf("nodeSelector: {kubernetes.io/hostname: %s}", node)
	if w.Anywhere {
		selector = "nodeSelector: {}"
	}
	budget := ""
	if w.Budget {
		budget = fmt.Sprintf(`---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: %[1]s, namespace: %[2]s}
spec: {minAvailable: %[3]d, selector: {matchLabels: {app: %[1]s}}}
`, w.Name, namespace, max(1, w.Replicas))
	}
	scaler := ""
	if w.Scaler[1] > 0 {
		scaler = fmt.Sprintf(`---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: %[5]s, name: %[1]s}
  minReplicas: %[3]d
  maxReplicas: %[4]d
  metrics: [{type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Gi}}}]
`, w.Name, namespace, w.Scaler[0], w.Scaler[1], w.kind())
	}
	words, host, root := "args", "", ""
	if w.Host {
		words, root = "command", ", {name: host, hostPath: {path: /, type: Directory}}"
		host = fmt.Sprintf(", {name: host, mountPath: /host, readOnly: true}, {name: disk, mountPath: /host%s}", disk)
	}
	hook := ""
	if w.PreStop > 0 {
		hook = fmt.Sprintf("\n        lifecycle: {preStop: {sleep: {seconds: %d}}}", w.PreStop)
	}
	replicas := ""
	if w.kind() == Deployment {
		replicas = fmt.Sprintf("\n  replicas: %d", max(1, w.Replicas))
	}
	return fmt.Sprintf(`apiVersion: apps/v1
kind: %[11]s
metadata: {name: %[1]s, namespace: %[2]s, labels: {app: %[1]s, spillway-case: "1"}}
spec:%[3]s
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s, spillway-case: "1"}, annotations: {%[10]s}}
    spec:
      terminationGracePeriodSeconds: %[4]d
      automountServiceAccountToken: false
      %[9]s
      containers:
      - name: main
        image: %[5]s
        imagePullPolicy: IfNotPresent
        %[12]s: [%[6]s]
        resources: {%[7]s}
        volumeMounts: [{name: disk, mountPath: %[8]s}%[13]s]%[14]s
      volumes: [{name: disk, hostPath: {path: %[8]s, type: DirectoryOrCreate}}%[15]s]
`, w.Name, namespace, replicas, grace, cluster.WorkloadImage, strings.Join(args, ", "), strings.TrimSuffix(resources, ", "), disk, selector, strings.Trim(w.Annotate, "{}"), w.kind(), words, host, hook, root) + budget + scaler
}
