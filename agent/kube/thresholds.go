package kube

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// The kubelet's two memory signals (pkg/kubelet/eviction/api/types.go).
const (
	SignalMemory            = "memory.available"            // capacity of the node less its working set
	SignalAllocatableMemory = "allocatableMemory.available" // limit of kubepods less its working set
)

// MemoryThreshold is one memory threshold of the kubelet: it is met while the signal is below it.
type MemoryThreshold struct {
	Signal  string
	Hard    bool
	Bytes   uint64        // the quantity; 0 when given in percent
	Percent float64       // of the signal's capacity, 0 to 100; 0 when given as a quantity
	Grace   time.Duration // soft thresholds only: how long it must be met
}

// MemoryThresholds returns the thresholds in force on memory, hard before soft, as the kubelet derives them
// (pkg/kubelet/eviction/helpers.go, ParseThresholdConfig): "0%" and "100%" mean none; a soft one needs a grace period;
// when "pods" is in enforceNodeAllocatable, each hard memory.available is copied, and no soft one, to
// allocatableMemory.available. Empty means that the kubelet evicts nobody for memory.
func (k KubeletConfig) MemoryThresholds() ([]MemoryThreshold, error) {
	var out []MemoryThreshold
	for _, set := range []struct {
		field string
		hard  bool
		from  map[string]string
	}{{"evictionHard", true, k.EvictionHard}, {"evictionSoft", false, k.EvictionSoft}} {
		for _, signal := range [...]string{SignalMemory, SignalAllocatableMemory} {
			value, ok := set.from[signal]
			if !ok {
				continue
			}
			t, ok, err := parseThreshold(value)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", set.field, signal, err)
			}
			if !ok {
				continue
			}
			t.Signal, t.Hard = signal, set.hard
			if !set.hard {
				if t.Grace, ok = k.EvictionSoftGracePeriod[signal]; !ok {
					return nil, fmt.Errorf("evictionSoftGracePeriod %s: not set, and evictionSoft needs it", signal)
				}
			}
			out = append(out, t)
		}
	}
	if slices.Contains(k.EnforceNodeAllocatable, "pods") {
		for _, t := range slices.Clone(out) {
			if t.Hard && t.Signal == SignalMemory {
				t.Signal = SignalAllocatableMemory
				out = append(out, t)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b MemoryThreshold) int {
		switch {
		case a.Hard == b.Hard:
			return 0
		case a.Hard:
			return -1
		default:
			return 1
		}
	})
	return out, nil
}

// Reserved returns the memory in systemReserved and kubeReserved in bytes: the limit of kubepods is the node's
// capacity less both.
func (k KubeletConfig) Reserved() (system, kube uint64, err error) {
	one := func(field string, from map[string]string) (uint64, error) {
		value, ok := from["memory"]
		if !ok {
			return 0, nil
		}
		q, err := resource.ParseQuantity(value)
		if err != nil {
			return 0, fmt.Errorf("%s memory %q: %w", field, value, err)
		}
		if q.Sign() < 0 {
			return 0, fmt.Errorf("%s memory %q: negative", field, value)
		}
		return bytesOf(q), nil
	}
	if system, err = one("systemReserved", k.SystemReserved); err != nil {
		return 0, 0, err
	}
	if kube, err = one("kubeReserved", k.KubeReserved); err != nil {
		return 0, 0, err
	}
	return system, kube, nil
}

// parseThreshold reads "100Mi" or "5%"; ok is false for "0%" and "100%", which switch a threshold off.
func parseThreshold(value string) (t MemoryThreshold, ok bool, err error) {
	if strings.HasSuffix(value, "%") {
		if value == "0%" || value == "100%" {
			return t, false, nil
		}
		p, err := strconv.ParseFloat(strings.TrimRight(value, "%"), 32)
		if err != nil {
			return t, false, fmt.Errorf("percentage %q: %w", value, err)
		}
		if math.IsNaN(p) || p < 0 || p > 100 {
			return t, false, fmt.Errorf("percentage %q: outside 0 to 100", value)
		}
		t.Percent = p
		return t, true, nil
	}
	q, err := resource.ParseQuantity(value)
	if err != nil {
		return t, false, fmt.Errorf("quantity %q: %w", value, err)
	}
	if q.Sign() <= 0 {
		return t, false, fmt.Errorf("quantity %q: not positive", value)
	}
	t.Bytes = bytesOf(q)
	return t, true, nil
}
