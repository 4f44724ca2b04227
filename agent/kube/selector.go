package kube

import (
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/labels"

	"spillway/agent/policy"
)

// ParseSelector parses a label selector as kubectl takes it: tier=database, app in (a,b), !temporary. An empty one, which
// would select every pod, is an error.
func ParseSelector(text string) (policy.Selector, error) {
	s, err := labels.Parse(text)
	if err != nil {
		return policy.Selector{}, fmt.Errorf("label selector %q: %w", text, err)
	}
	if s.Empty() {
		return policy.Selector{}, errors.New("an empty label selector would select every pod")
	}
	return policy.Selector{Text: text, Match: func(l map[string]string) bool { return s.Matches(labels.Set(l)) }}, nil
}
