// Package score judges would-be evictions afterwards: those that observe mode decided on and did not ask for. People read the
// score before they arm Spillway.
//
// A would-be eviction waits from the moment at which the API server accepted its dry run. It is judged by the first of these:
//
//   - crossed: the margin to a hard threshold (the kubelet's, or the guard's) is below 0. The eviction was right.
//     Where it was below 0 as the pod was named, it has to fall on.
//   - acted: the kubelet evicts a pod for memory, or the kernel kills as the node or kubepods has run out of memory. It was right
//     too. A kill at the limit of the victim's own container or pod is no such act.
//   - ended: the growth ended by itself. For Quiet the pod held no more than before and the level was under evict; or the
//     pod ended by itself; or Longest passed without a crossing. The eviction was not needed.
//   - not judged: the future changed (a pod was evicted by Spillway, the pod was deleted), it was not seen (no reading of node or
//     pod for more than Gap, another boot of the node, another clock), or the crossing was not the pod's: it had fallen by half of
//     its rise before, or had not risen for half a minute.
//
// Evictions that are asked for change the future: they are never judged, and they end the wait of those that are.
//
// A pod that is named again while it waits, or after its verdict while the level stays at evict, is counted there. For as long the
// pods that the kubelet and the kernel take are noted: the same one, or another.
//
// All spans are of the time since boot, so that a step of the wall clock changes no verdict. Times of day are for people.
package score
