// Package kube is the agent's only door to Kubernetes: the pods of this node (one watch), evictions, the few single
// objects that a decision asks for (node, lease, controllers), Kubernetes Events, and the kubelet's effective
// eviction thresholds from /configz or from its files.
//
// No type of client-go or of the Kubernetes API leaves this package. Nothing here lists more than the pods of one
// node, nothing decides anything, and no call waits without a timeout.
package kube
