package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"spillway/agent/policy"
)

const (
	workloadPods  = 100 // of one workload are looked at
	fewPods       = 10  // of a workload are looked at all at once
	namedTTL      = time.Hour
	namedPods     = 64               // replacements whose name is kept
	podEvents     = 20               // of one pod
	creationSkew  = 2 * time.Second  // of the API server's clock against ours, where it does not show
	startPatience = 10 * time.Second // until events are asked for why a pod does not start
	eventAge      = 10 * time.Minute // a fault that goes on is told again: kubelets hold equal ones back for 5 min
	maxReason     = 256              // bytes of Replacement.Message
)

// Replacement looks for the pod that came in the place of an evicted one: a GET of the controller, a LIST of its pods, and
// where a pod does not start a LIST of at most 20 of its Events; each may take 5 s. Of a workload that wants more than 10 pods
// only the replacement that was found before is listed, else those that are pending; all only where neither finds it, at most
// 100, and not of a workload that wants more. A replacement of such one that is not pending counts as running when the
// controller says that all its pods are ready.
//
// An error comes with what is known in spite of it; the state is unknown when that is nothing.
func (c *Client) Replacement(ctx context.Context, q policy.ReplacementQuery) (policy.Replacement, error) {
	owner, err := c.replicator(ctx, q)
	switch {
	case apierrors.IsNotFound(err):
		return policy.Replacement{State: policy.ReplacementNotWanted, Message: "its controller is gone"}, nil
	case err != nil:
		return policy.Replacement{State: policy.ReplacementUnknown}, fmt.Errorf("get controller %s %s/%s: %w", q.Owner.Kind, q.Namespace, q.Owner.Name, err)
	}
	if owner.selector == nil {
		return policy.Replacement{State: policy.ReplacementUnknown, Message: fmt.Sprintf("how a %s of %s replaces its pods is not known", q.Owner.Kind, q.Owner.APIVersion)}, nil
	}
	pod, found, err := c.lookFor(ctx, q, &owner)
	if err != nil {
		return policy.Replacement{State: policy.ReplacementUnknown}, fmt.Errorf("list pods of %s %s/%s: %w", q.Owner.Kind, q.Namespace, q.Owner.Name, err)
	}
	if pod == nil {
		return found, nil
	}
	c.named.put(string(pod.UID), pod.Name, nil)
	r := fate(pod)
	if r.State != policy.ReplacementStarting || pod.Spec.NodeName == "" || time.Since(pod.CreationTimestamp.Time) < startPatience {
		return r, nil
	}
	events, err := c.warnings(ctx, pod)
	if err != nil {
		return r, fmt.Errorf("list events of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	if e := telling(events, time.Now()); e != nil {
		r.State, r.Message = stateOf(e), bounded(e.Reason+": "+e.Message)
	}
	return r, nil
}

// lookFor returns the pod, or says why there is none. Answers are a few kilobytes except where it looks at all pods.
func (c *Client) lookFor(ctx context.Context, q policy.ReplacementQuery, owner *replicator) (*corev1.Pod, policy.Replacement, error) {
	if owner.wanted > fewPods {
		filters := []string{"status.phase=" + string(corev1.PodPending)}
		if known, ok := c.named.get(q.Known); ok {
			filters = append([]string{"metadata.name=" + known.value}, filters...)
		}
		for _, field := range filters {
			pods, err := c.podsOf(ctx, q.Namespace, owner.selector, field)
			if err != nil {
				return nil, policy.Replacement{}, err
			}
			if pod, _, _ := choose(pods.Items, q); pod != nil {
				return pod, policy.Replacement{}, nil
			}
		}
	}
	switch {
	case owner.wanted <= workloadPods:
	case owner.allReady && time.Since(q.Since) > startPatience:
		return nil, policy.Replacement{State: policy.ReplacementRunning, ReadyAt: time.Now(), Message: fmt.Sprintf("all %d pods that its controller wants are ready", owner.wanted)}, nil
	default:
		return nil, missing(owner, 0, nil, true), nil
	}
	pods, err := c.podsOf(ctx, q.Namespace, owner.selector, "")
	if err != nil {
		return nil, policy.Replacement{}, err
	}
	pod, active, failed := choose(pods.Items, q)
	return pod, missing(owner, active, failed, pods.Continue != ""), nil
}

// replicator is what is asked anew each time of a ReplicaSet, StatefulSet, ReplicationController or Job.
type replicator struct {
	allReady bool            // as many pods as it wants are ready, says its status; false where that is not known
	selector labels.Selector // nil: of another kind
	wanted   int32           // pods that it wants to have
	failure  string          // why it could make none
}

func (c *Client) replicator(ctx context.Context, q policy.ReplacementQuery) (replicator, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	get := func(path, resource string, into interface {
		runtime.Object
		metav1.Object
	}) error {
		err := c.reads.Get().AbsPath(path).Namespace(q.Namespace).Resource(resource).Name(q.Owner.Name).MaxRetries(0).Do(ctx).Into(into)
		if err == nil && string(into.GetUID()) != q.Owner.UID {
			return apierrors.NewNotFound(corev1.Resource(resource), q.Owner.Name) // another one of this name
		}
		return err
	}
	var out replicator
	var err error
	switch group, _, _ := strings.Cut(q.Owner.APIVersion, "/"); group + "/" + q.Owner.Kind {
	case "apps/ReplicaSet":
		var o appsv1.ReplicaSet
		if err = get("/apis/apps/v1", "replicasets", &o); err == nil {
			out.wanted, out.selector, err = want(o.Spec.Replicas, o.Spec.Selector)
			out.allReady = o.Status.ObservedGeneration >= o.Generation && o.Status.ReadyReplicas >= out.wanted
		}
		for _, cond := range o.Status.Conditions {
			if cond.Type == appsv1.ReplicaSetReplicaFailure && cond.Status == corev1.ConditionTrue {
				out.failure = cond.Message
			}
		}
	case "apps/StatefulSet":
		var o appsv1.StatefulSet
		if err = get("/apis/apps/v1", "statefulsets", &o); err == nil {
			out.wanted, out.selector, err = want(o.Spec.Replicas, o.Spec.Selector)
		}
	case "batch/Job":
		var o batchv1.Job
		if err = get("/apis/batch/v1", "jobs", &o); err == nil {
			out.wanted, out.selector, err = want(jobPods(&o), o.Spec.Selector)
		}
	case "v1/ReplicationController":
		var o corev1.ReplicationController
		if err = get("/api/v1", "replicationcontrollers", &o); err == nil {
			out.wanted, out.selector, err = want(o.Spec.Replicas, &metav1.LabelSelector{MatchLabels: o.Spec.Selector})
		}
		for _, cond := range o.Status.Conditions {
			if cond.Type == corev1.ReplicationControllerReplicaFailure && cond.Status == corev1.ConditionTrue {
				out.failure = cond.Message
			}
		}
	}
	return out, err
}

func want(n *int32, s *metav1.LabelSelector) (int32, labels.Selector, error) {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return 0, nil, fmt.Errorf("selector: %w", err)
	}
	if selector.Empty() {
		return 0, nil, errors.New("selector is empty: it would select every pod of the namespace")
	}
	if n == nil {
		return 1, selector, nil // the API server's default
	}
	return *n, selector, nil
}

// jobPods is how many pods a Job wants to have at a time now.
func jobPods(j *batchv1.Job) *int32 {
	n := int32(1)
	if j.Spec.Parallelism != nil {
		n = *j.Spec.Parallelism
	}
	switch {
	case j.Spec.Completions != nil:
		n = min(n, max(*j.Spec.Completions-j.Status.Succeeded, 0))
	case j.Status.Succeeded > 0: // a work queue: no new pods after the first success
		n = 0
	}
	if j.Spec.Suspend != nil && *j.Spec.Suspend {
		n = 0
	}
	for _, cond := range j.Status.Conditions {
		if (cond.Type == batchv1.JobComplete || cond.Type == batchv1.JobFailed) && cond.Status == corev1.ConditionTrue {
			n = 0
		}
	}
	return &n
}

func (c *Client) podsOf(ctx context.Context, namespace string, s labels.Selector, field string) (*corev1.PodList, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	list := &corev1.PodList{}
	o := metav1.ListOptions{LabelSelector: s.String(), FieldSelector: field, Limit: workloadPods}
	err := c.reads.Get().Namespace(namespace).Resource("pods").VersionedParams(&o, c.wire.parameters).MaxRetries(0).Do(ctx).Into(list)
	return list, err
}

func (c *Client) warnings(ctx context.Context, pod *corev1.Pod) ([]corev1.Event, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	list := &corev1.EventList{}
	of := fields.AndSelectors(fields.OneTermEqualSelector("involvedObject.uid", string(pod.UID)), fields.OneTermEqualSelector("type", corev1.EventTypeWarning))
	o := metav1.ListOptions{FieldSelector: of.String(), Limit: podEvents}
	err := c.reads.Get().Namespace(pod.Namespace).Resource("events").VersionedParams(&o, c.wire.parameters).MaxRetries(0).Do(ctx).Into(list)
	return list.Items, err
}

// earliest is when a replacement can have been made, by the API server's clock as far as it is known: while the evicted pod
// is there, it says when its grace period began.
func earliest(pods []corev1.Pod, q policy.ReplacementQuery) time.Time {
	from := q.Since.Truncate(time.Second).Add(-creationSkew)
	for i := range pods {
		p := &pods[i]
		if p.Name != q.Name || p.DeletionTimestamp == nil || p.DeletionGracePeriodSeconds == nil || !slices.Contains(q.Not, string(p.UID)) {
			continue
		}
		if began := p.DeletionTimestamp.Add(-time.Duration(*p.DeletionGracePeriodSeconds) * time.Second); began.Before(from) {
			return began
		}
	}
	return from
}

// choose returns the pod that replaces the evicted one, nil when there is none; how many pods the workload has that live;
// and the newest pod that came in the place and failed, which its controller replaces again.
func choose(pods []corev1.Pod, q policy.ReplacementQuery) (chosen *corev1.Pod, active int32, failed *corev1.Pod) {
	from := earliest(pods, q)
	var fit []*corev1.Pod
	for i := range pods {
		p := &pods[i]
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil || string(ref.UID) != q.Owner.UID || p.DeletionTimestamp != nil {
			continue
		}
		over := p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
		if !over {
			active++
		}
		if slices.Contains(q.Not, string(p.UID)) || p.CreationTimestamp.Time.Before(from) && string(p.UID) != q.Known || q.Owner.Kind == "StatefulSet" && p.Name != q.Name {
			continue
		}
		if p.Status.Phase == corev1.PodFailed {
			if failed == nil || p.CreationTimestamp.After(failed.CreationTimestamp.Time) {
				failed = p
			}
			continue
		}
		fit = append(fit, p)
	}
	if len(fit) == 0 {
		return nil, active, failed
	}
	return slices.MinFunc(fit, func(a, b *corev1.Pod) int {
		if known := string(a.UID) == q.Known; known != (string(b.UID) == q.Known) {
			if known {
				return -1
			}
			return 1
		}
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	}), active, failed
}

// missing says why there is no replacement.
func missing(owner *replicator, active int32, failed *corev1.Pod, more bool) policy.Replacement {
	switch {
	case active >= owner.wanted:
		return policy.Replacement{State: policy.ReplacementNotWanted, Message: fmt.Sprintf("its controller has all %d pods that it wants", owner.wanted)}
	case more:
		return policy.Replacement{State: policy.ReplacementUnknown, Message: fmt.Sprintf("the workload has more than %d pods, and of those that came later none is known to be pending", workloadPods)}
	case owner.failure != "":
		return policy.Replacement{State: policy.ReplacementNone, Message: bounded(owner.failure)}
	case failed != nil:
		return policy.Replacement{State: policy.ReplacementNone, Node: failed.Spec.NodeName, Message: bounded(fmt.Sprintf("%s failed: %s: %s", failed.Name, failed.Status.Reason, failed.Status.Message))}
	}
	return policy.Replacement{State: policy.ReplacementNone, Message: "its controller has made no pod yet"}
}

// fate says how far a pod has come, from the pod alone.
func fate(p *corev1.Pod) policy.Replacement {
	r := policy.Replacement{State: policy.ReplacementStarting, Pod: p.Name, UID: string(p.UID), Node: p.Spec.NodeName}
	ready, scheduled := condition(p, corev1.PodReady), condition(p, corev1.PodScheduled)
	switch {
	case p.Status.Phase == corev1.PodSucceeded:
		r.State = policy.ReplacementRunning
		return r
	case p.Status.Phase == corev1.PodRunning && ready != nil && ready.Status == corev1.ConditionTrue:
		r.State, r.ReadyAt = policy.ReplacementRunning, ready.LastTransitionTime.Time
		return r
	case p.Spec.NodeName == "" && scheduled != nil && scheduled.Status == corev1.ConditionFalse:
		r.State, r.Message = policy.ReplacementUnscheduled, bounded(scheduled.Message)
		return r
	case p.Spec.NodeName == "":
		r.Message = "no scheduler has looked at it yet"
		return r
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			if state, why := troubleOf(&list[i]); state != "" {
				r.State, r.Message = state, bounded(list[i].Name+": "+why)
				return r
			}
		}
	}
	switch {
	case p.Status.Phase == corev1.PodRunning && ready != nil:
		r.Message = bounded("not ready: " + cmp.Or(ready.Message, ready.Reason))
	default:
		r.Message = "its containers are being created"
	}
	return r
}

func condition(p *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == kind {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// troubleOf says what keeps a container from running, "" when nothing is known to. The reasons are those of
// k8s.io/kubernetes/pkg/kubelet/images and pkg/kubelet/container.
func troubleOf(c *corev1.ContainerStatus) (policy.ReplacementState, string) {
	if w := c.State.Waiting; w != nil {
		text := w.Reason
		if w.Message != "" {
			text += ": " + w.Message
		}
		switch w.Reason {
		case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
			return policy.ReplacementImage, text
		case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError", "PostStartHookError":
			return policy.ReplacementContainer, text
		case "CrashLoopBackOff":
			return policy.ReplacementCrash, w.Reason + ended(c.LastTerminationState.Terminated)
		}
	}
	if c.Ready || c.RestartCount == 0 {
		return "", ""
	}
	// Between two ends a container runs for a moment, or has just ended again.
	last := cmp.Or(c.State.Terminated, c.LastTerminationState.Terminated)
	if last == nil || last.ExitCode == 0 && c.State.Running == nil {
		return "", "" // an init container that is done
	}
	return policy.ReplacementCrash, "restarted" + ended(last)
}

func ended(t *corev1.ContainerStateTerminated) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf(", last ended with exit code %d (%s)", t.ExitCode, t.Reason)
}

// telling returns the newest Event that says why a pod does not start, nil when none does. Warnings that say nothing of
// that, such as of DNS settings, may be repeated for ever; those of before it had a node are over.
func telling(events []corev1.Event, now time.Time) *corev1.Event {
	var out *corev1.Event
	for i := range events {
		e := &events[i]
		if stateOf(e) != "" && now.Sub(seenAt(e)) < eventAge && (out == nil || seenAt(e).After(seenAt(out))) {
			out = e
		}
	}
	return out
}

func seenAt(e *corev1.Event) time.Time {
	at := e.FirstTimestamp.Time
	for _, t := range []time.Time{e.LastTimestamp.Time, e.EventTime.Time, e.CreationTimestamp.Time} {
		if t.After(at) {
			at = t
		}
	}
	if e.Series != nil && e.Series.LastObservedTime.After(at) {
		at = e.Series.LastObservedTime.Time
	}
	return at
}

// noAddress are words of network plugins whose addresses are used up: host-local and those that delegate to it, the AWS
// VPC plugin, Cilium and others with the allocator of Kubernetes, Calico, and Azure.
var noAddress = []string{
	"no ip addresses available", "failed to assign an ip address", "range is full", "no more ips available", "no available ip",
	"no more free addresses", "no free addresses", "ip address not available", "insufficient ip", "ipam has no", "requested ipv4 addresses",
	"does not have enough available ip addresses", "subnetisfull", "ip pool is exhausted", "address pool exhausted", "no addresses available",
}

// stateOf says what a Warning of a pod that does not start means, "" when it says nothing of that.
func stateOf(e *corev1.Event) policy.ReplacementState {
	text := strings.ToLower(e.Message)
	switch e.Reason {
	case "FailedCreatePodSandBox", "FailedSync", "NetworkNotReady", "FailedPodSandBoxStatus":
		if slices.ContainsFunc(noAddress, func(s string) bool { return strings.Contains(text, s) }) {
			return policy.ReplacementAddresses
		}
		return policy.ReplacementSandbox
	case "FailedMount", "FailedAttachVolume", "FailedMapVolume":
		return policy.ReplacementMount
	case "Failed", "ErrImageNeverPull", "InspectFailed":
		if strings.Contains(text, "image") {
			return policy.ReplacementImage
		}
		return policy.ReplacementContainer
	case "BackOff":
		if strings.Contains(text, "image") {
			return policy.ReplacementImage
		}
		return policy.ReplacementCrash
	case "Unhealthy":
		return policy.ReplacementStarting // a probe: it says what is waited for
	}
	return ""
}

// runtimeID is an id of containerd or CRI-O, a new one with each attempt: without it the message stays the same.
var runtimeID = regexp.MustCompile(`[0-9a-f]{64}`)

// bounded makes one line of at most maxReason bytes of a message. What is too long loses its middle: causes stand last.
func bounded(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(runtimeID.ReplaceAllString(s, "(id)"), "?")), " ")
	if len(s) <= maxReason {
		return s
	}
	const gap = " ... "
	head, tail := maxReason/2, len(s)-(maxReason/2-len(gap))
	for !utf8.RuneStart(s[head]) {
		head--
	}
	for !utf8.RuneStart(s[tail]) {
		tail++
	}
	return s[:head] + gap + s[tail:]
}
