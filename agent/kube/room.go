package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	nodehelper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"spillway/agent/policy"
)

const (
	nodeTTL       = 60 * time.Second
	namesTTL      = 10 * time.Minute
	namesMax      = 500             // nodes to choose from: one page
	nodesMax      = 50              // a cluster of so many is looked at as a whole
	nodesChosen   = 20              // that are looked at of a larger one
	neededNodes   = 2               // a pod has room elsewhere when it fits on so many, or on all when there are fewer
	useMax        = 5 * time.Minute // an older figure of metrics-server is none
	namesBytes    = 256 << 10       // that are read of an answer, of about 200 a name
	nodesBytes    = 4 << 20         // likewise: a node has up to 30 KiB, most of it the names of images
	usesBytes     = 256 << 10       // likewise: about 350 a node
	roomNumerator = 4               // a node is full at 4/5 of its capacity
	roomDivisor   = 5
)

// nodeList is some of the cluster's nodes, without this one where they were chosen.
type nodeList struct {
	complete bool      // all of them
	at       time.Time // tells lists apart
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
// answer is Single. Looked at are all nodes of a cluster of at most 50, and 20 of a larger one, chosen at random each time,
// of this node's zone where that is known; answers are kept for 60 s, errors for 5 s. An error
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
	uses, err := ask(ctx, c.uses, nodes.at, func() (map[string]uint64, error) { return c.nodeUses(ctx, &nodes) })
	return nodes.room(c.node, place, need, uses, excluded), err
}

// listNodes chooses nodes and asks for them: all where there are few, else so many at random, of this node's zone first. It
// is never the whole cluster: what an agent reads does not grow with that.
func (c *Client) listNodes(ctx context.Context) (nodeList, error) {
	names, err := ask(ctx, c.names, struct{}{}, func() (nodeNames, error) { return c.listNames(ctx) })
	if err != nil {
		return nodeList{}, err
	}
	out := nodeList{complete: names.complete && len(names.names) <= nodesMax, at: time.Now()}
	req := c.reads.Get().AbsPath("/api/v1/nodes")
	var chosen []string // nil: all
	if out.complete {
		req.Param("limit", strconv.Itoa(nodesMax))
	} else {
		chosen = slices.Clone(names.names)
		rand.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
		chosen = chosen[:min(len(chosen), nodesChosen)]
		// From the API server's cache: the selector bounds the answer, where a limit would not.
		req.Param("labelSelector", hostnames(chosen)).Param("resourceVersion", "0")
	}
	var got struct{ Items []corev1.Node }
	if err := c.read(ctx, req, "application/json", nodesBytes, &got); err != nil {
		return nodeList{}, fmt.Errorf("list nodes: %w", err)
	}
	for i := range got.Items {
		n := &got.Items[i]
		if chosen != nil && !slices.Contains(chosen, n.Name) {
			continue // the server does not honour the selector
		}
		if len(out.nodes) == nodesMax {
			out.complete = false
			break
		}
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
	return out, nil
}

// nodeNames are those of nodes to choose from: all of the cluster, or one page of the zone or of the cluster.
type nodeNames struct {
	complete bool
	names    []string // without this node's
}

// listNames asks for one page of the names of nodes, without the objects: about 200 bytes each. Where that is not the whole
// cluster, and the zone of this node is known, the page is of the zone, unless that has too few.
func (c *Client) listNames(ctx context.Context) (nodeNames, error) {
	all, err := c.namesBy(ctx, "")
	zone := c.zone.Load()
	if err != nil || all.complete && len(all.names) <= nodesMax || zone == nil || *zone == "" {
		return all, err
	}
	near, err := c.namesBy(ctx, corev1.LabelTopologyZone+"="+*zone)
	if err != nil || len(near.names) < nodesChosen {
		return all, err
	}
	near.complete = false
	return near, nil
}

func (c *Client) namesBy(ctx context.Context, selector string) (nodeNames, error) {
	req := c.reads.Get().AbsPath("/api/v1/nodes").Param("limit", strconv.Itoa(namesMax)).Param("includeObject", string(metav1.IncludeNone))
	if selector != "" {
		req.Param("labelSelector", selector)
	}
	var got struct {
		Metadata struct{ Continue string }
		Columns  []struct{ Name string } `json:"columnDefinitions"`
		Rows     []struct{ Cells []any }
	}
	if err := c.read(ctx, req, "application/json;as=Table;v=v1;g=meta.k8s.io", namesBytes, &got); err != nil {
		return nodeNames{}, fmt.Errorf("list names of nodes: %w", err)
	}
	if len(got.Columns) == 0 || got.Columns[0].Name != "Name" {
		return nodeNames{}, errors.New("list names of nodes: the answer is no table whose first column is Name")
	}
	out := nodeNames{complete: got.Metadata.Continue == ""}
	for _, r := range got.Rows {
		if len(r.Cells) == 0 {
			continue
		}
		if name, ok := r.Cells[0].(string); ok && name != c.node {
			out.names = append(out.names, name)
		}
	}
	return out, nil
}

// hostnames is the selector of nodes by the label that the kubelet sets, to which most have their name.
func hostnames(values []string) string {
	return corev1.LabelHostname + " in (" + strings.Join(values, ",") + ")"
}

// read gets JSON and reads no more than so many bytes of it, whatever the server makes of limits and selectors.
func (c *Client) read(ctx context.Context, req *rest.Request, accept string, most int64, into any) error {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	body, err := req.SetHeader("Accept", accept).MaxRetries(0).Stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, most+1))
	switch {
	case err != nil:
		return err
	case int64(len(text)) > most:
		return fmt.Errorf("the answer is larger than %d KiB: the server does not honour limit or selector", most>>10)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	return nil
}

// nodeUses asks metrics.k8s.io for the working sets of those nodes, bytes. What is older than 5 minutes is left out.
// metrics-server knows no limit, but honours a selector by label.
func (c *Client) nodeUses(ctx context.Context, l *nodeList) (map[string]uint64, error) {
	hosts := make([]string, 0, len(l.nodes))
	for i := range l.nodes {
		hosts = append(hosts, cmp.Or(l.nodes[i].object.Labels[corev1.LabelHostname], l.nodes[i].object.Name))
	}
	var got useList
	req := c.reads.Get().AbsPath("/apis/metrics.k8s.io/v1beta1/nodes").Param("labelSelector", hostnames(hosts))
	if err := c.read(ctx, req, "application/json", usesBytes, &got); err != nil {
		return nil, fmt.Errorf("list nodes of metrics.k8s.io: %w", err)
	}
	return got.uses(time.Now()), nil
}

// useList is what is read of a NodeMetricsList.
type useList struct {
	Items []struct {
		Metadata  struct{ Name string }
		Timestamp time.Time
		Usage     map[corev1.ResourceName]string
	}
}

// uses are the figures by node. Those that are old or no quantities are left out: unknown, not zero.
func (got *useList) uses(now time.Time) map[string]uint64 {
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
	return out
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
		out.Known, out.Why = false, fmt.Sprintf("it fits on %d of %d needed nodes, and only %d of the cluster were looked at", fits, out.Wanted, len(l.nodes))
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
