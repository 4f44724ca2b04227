package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	nodehelper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"spillway/agent/policy"
)

const (
	nodeTTL       = 60 * time.Second
	nodesMax      = 50              // nodes that are looked at: one chunk
	neededNodes   = 2               // a pod has room elsewhere when it fits on so many, or on all when there are fewer
	useMax        = 5 * time.Minute // an older figure of metrics-server is none
	metricsMax    = 8 << 20         // bytes of its answer that are read: it knows no chunks
	roomNumerator = 4               // a node is full at 4/5 of its capacity
	roomDivisor   = 5
)

// nodeList is one chunk of the cluster's nodes.
type nodeList struct {
	complete bool
	nodes    []otherNode
}

// otherNode keeps of a node what placing a pod depends on.
type otherNode struct {
	object                corev1.Node // name, labels and taints only
	capacity, allocatable uint64      // memory in bytes, 0: not reported
	schedulable           bool        // ready and not cordoned
	pressure              bool        // condition MemoryPressure
}

// Room says whether a pod would find a place on other nodes: on two of those that take pods, or on the only one. It needs the
// larger of its request and use, bytes; use is what it usually takes, 0 when that is not known. A node has room when its
// use, as metrics-server reports it, and the pod stay within 80 % of its capacity; taints, node selector and required node
// affinity are matched by the scheduler's own code. Not looked at are other resources than memory, affinity to other pods,
// spread constraints and volumes.
//
// Nodes count that are ready, not cordoned, not excluded by name, and whose taints the pod tolerates. Where there is none the
// answer is Single. Looked at are the first 50 nodes of the cluster; both answers are kept for 60 s, errors for 5 s. An error
// says what is missing of the answer, which is Known all the same where the rest is enough to tell.
func (c *Client) Room(ctx context.Context, pod *policy.Pod, use uint64, excluded []string) (policy.Room, error) {
	place := c.pods.placement(pod.UID)
	if place == nil {
		return policy.Room{Why: "the API server does not list the pod any more"}, nil
	}
	nodes, err := ask(ctx, c.nodes, struct{}{}, func() (nodeList, error) { return c.listNodes(ctx) })
	if err != nil {
		return policy.Room{Why: err.Error()}, err
	}
	need := max(place.request, use)
	if room := nodes.room(c.node, place, need, nil, excluded); room.Single {
		return room, nil // nobody's use matters
	}
	uses, err := ask(ctx, c.uses, struct{}{}, func() (map[string]uint64, error) { return c.nodeUses(ctx) })
	return nodes.room(c.node, place, need, uses, excluded), err
}

func (c *Client) listNodes(ctx context.Context) (nodeList, error) {
	var got corev1.NodeList
	if err := c.chunk(ctx, "/api/v1", "", "nodes", nodesMax, &got); err != nil {
		return nodeList{}, err
	}
	out := nodeList{complete: got.Continue == ""}
	for i := range got.Items[:min(len(got.Items), nodesMax)] {
		n := &got.Items[i]
		o := otherNode{
			object:   corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels}, Spec: corev1.NodeSpec{Taints: n.Spec.Taints}},
			capacity: bytesOf(n.Status.Capacity[corev1.ResourceMemory]), allocatable: bytesOf(n.Status.Allocatable[corev1.ResourceMemory]),
		}
		for k := range n.Status.Conditions {
			switch cond := &n.Status.Conditions[k]; cond.Type {
			case corev1.NodeReady:
				o.schedulable = cond.Status == corev1.ConditionTrue && !n.Spec.Unschedulable
			case corev1.NodeMemoryPressure:
				o.pressure = cond.Status != corev1.ConditionFalse
			}
		}
		out.nodes = append(out.nodes, o)
	}
	out.complete = out.complete && len(got.Items) <= nodesMax
	return out, nil
}

// nodeUses asks metrics.k8s.io for the working sets of nodes, bytes. What is older than 5 minutes is left out.
func (c *Client) nodeUses(ctx context.Context) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	body, err := c.reads.Get().AbsPath("/apis/metrics.k8s.io/v1beta1/nodes").Param("limit", strconv.Itoa(nodesMax)).
		SetHeader("Accept", "application/json").MaxRetries(0).Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes of metrics.k8s.io: %w", err)
	}
	defer body.Close()
	return parseUses(io.LimitReader(body, metricsMax), time.Now())
}

// parseUses reads a NodeMetricsList. Figures that are old or no quantities are left out: unknown, not zero.
func parseUses(r io.Reader, now time.Time) (map[string]uint64, error) {
	var got struct {
		Items []struct {
			Metadata  struct{ Name string }
			Timestamp time.Time
			Usage     map[corev1.ResourceName]string
		}
	}
	if err := json.NewDecoder(r).Decode(&got); err != nil {
		return nil, fmt.Errorf("list nodes of metrics.k8s.io: parse: %w", err)
	}
	out := make(map[string]uint64, len(got.Items))
	for i := range got.Items {
		n := &got.Items[i]
		text, ok := n.Usage[corev1.ResourceMemory]
		if !ok || n.Metadata.Name == "" || now.Sub(n.Timestamp) > useMax {
			continue
		}
		if q, err := resource.ParseQuantity(text); err == nil && q.Sign() >= 0 {
			out[n.Metadata.Name] = bytesOf(q)
		}
	}
	return out, nil
}

// room counts the nodes that take the pod.
func (l *nodeList) room(self string, place *placement, need uint64, uses map[string]uint64, excluded []string) policy.Room {
	affinity := nodeaffinity.GetRequiredNodeAffinity(place.scheduled())
	others, fits, maybe := 0, 0, 0
	against := reasons{}
	for i := range l.nodes {
		n := &l.nodes[i]
		if n.object.Name == self || !n.schedulable || slices.Contains(excluded, n.object.Name) || !place.tolerates(&n.object) {
			continue
		}
		others++
		use, known := uses[n.object.Name]
		match, err := affinity.Match(&n.object)
		switch {
		case err != nil || !match:
			against.add("outside its node selector or affinity")
		case n.pressure:
			against.add("under memory pressure")
		case n.allocatable > 0 && need > n.allocatable:
			against.add("too small")
		case !known || n.capacity == 0 || n.allocatable == 0:
			maybe++
			against.add("of unknown use or size")
		case add(use, need) > n.capacity/roomDivisor*roomNumerator:
			against.add("over 80 % with it")
		default:
			fits++
		}
	}
	out := policy.Room{Known: true, Fits: fits, Wanted: min(neededNodes, others), Need: need, Why: against.String()}
	if !l.complete {
		out.Wanted = neededNodes
	}
	switch {
	case out.Wanted == 0:
		return policy.Room{Known: true, Single: true, Need: need}
	case fits >= out.Wanted:
		out.Why = ""
	case !l.complete:
		out.Known, out.Why = false, fmt.Sprintf("it fits on %d of %d needed nodes, and only the first %d of the cluster were looked at", fits, out.Wanted, len(l.nodes))
	case fits+maybe >= out.Wanted:
		out.Known, out.Why = false, fmt.Sprintf("it fits on %d of %d needed nodes; %s", fits, out.Wanted, against.String())
	}
	return out
}

// tolerates reports whether no taint of the node keeps the pod away. Comparing operators are in a pod only where the API server
// allows them.
func (p *placement) tolerates(n *corev1.Node) bool {
	_, refused := nodehelper.FindMatchingUntoleratedTaint(klog.Logger{}, n.Spec.Taints, p.tolerations, func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	}, true)
	return !refused
}

// reasons counts why nodes do not take a pod, in the order in which they came up.
type reasons struct {
	text  []string
	count []int
}

func (r *reasons) add(why string) {
	i := slices.Index(r.text, why)
	if i < 0 {
		i = len(r.text)
		r.text, r.count = append(r.text, why), append(r.count, 0)
	}
	r.count[i]++
}

// String lists them: 2 over 80 % with it, 1 too small.
func (r *reasons) String() string {
	out := make([]string, len(r.text))
	for i := range out {
		out[i] = fmt.Sprintf("%d %s", r.count[i], r.text[i])
	}
	return strings.Join(out, ", ")
}
