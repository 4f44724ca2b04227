// Package prometheus makes of the PodMonitor what the operator makes of it, so that tests scrape agents as a cluster does.
package prometheus

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Target is the pod of an agent as Prometheus finds it.
type Target struct {
	Address, Pod, Node string
}

var unfit = regexp.MustCompile(`[^a-zA-Z0-9_]`)

// Config writes a prometheus.yml that scrapes targets each interval, with the labels that the operator's relabelings give them.
func Config(podMonitor []byte, rules, interval string, targets []Target) ([]byte, error) {
	var m struct {
		Metadata struct{ Name, Namespace string }
		Spec     struct {
			JobLabel string `yaml:"jobLabel"`
			Selector struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			}
			PodMetricsEndpoints []struct {
				Port        string
				HonorLabels bool `yaml:"honorLabels"`
				Relabelings []struct {
					SourceLabels []string `yaml:"sourceLabels"`
					TargetLabel  string   `yaml:"targetLabel"`
				}
			} `yaml:"podMetricsEndpoints"`
		}
	}
	if err := yaml.Unmarshal(podMonitor, &m); err != nil {
		return nil, fmt.Errorf("read PodMonitor: %w", err)
	}
	if len(m.Spec.PodMetricsEndpoints) != 1 {
		return nil, errors.New("read PodMonitor: want one entry in podMetricsEndpoints")
	}
	end := m.Spec.PodMetricsEndpoints[0]
	type relabeling = map[string]any
	from := func(target string, sources ...string) relabeling {
		return relabeling{"source_labels": sources, "target_label": target, "regex": "(.+)"}
	}
	set := func(target, value string) relabeling { return relabeling{"target_label": target, "replacement": value} }
	label := func(name string) string { return "__meta_kubernetes_pod_label_" + unfit.ReplaceAllString(name, "_") }
	var relabelings []relabeling
	for _, name := range slices.Sorted(maps.Keys(m.Spec.Selector.MatchLabels)) {
		relabelings = append(relabelings, relabeling{"action": "keep", "source_labels": []string{label(name)}, "regex": m.Spec.Selector.MatchLabels[name]})
	}
	relabelings = append(relabelings,
		relabeling{"action": "keep", "source_labels": []string{"__meta_kubernetes_pod_container_port_name"}, "regex": end.Port},
		from("namespace", "__meta_kubernetes_namespace"), from("container", "__meta_kubernetes_pod_container_name"), from("pod", "__meta_kubernetes_pod_name"),
		set("job", m.Metadata.Namespace+"/"+m.Metadata.Name), from("job", label(m.Spec.JobLabel)), set("endpoint", end.Port))
	for _, r := range end.Relabelings {
		relabelings = append(relabelings, relabeling{"source_labels": r.SourceLabels, "target_label": r.TargetLabel})
	}
	var found []map[string]any
	for _, t := range targets {
		found = append(found, map[string]any{"targets": []string{t.Address}, "labels": map[string]string{
			"__meta_kubernetes_namespace": m.Metadata.Namespace, "__meta_kubernetes_pod_name": t.Pod, "__meta_kubernetes_pod_node_name": t.Node,
			"__meta_kubernetes_pod_container_name": "agent", "__meta_kubernetes_pod_container_port_name": "metrics", label("app.kubernetes.io/name"): "spillway"}})
	}
	return yaml.Marshal(map[string]any{
		"global":     map[string]string{"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
		"rule_files": []string{rules},
		"scrape_configs": []any{map[string]any{"job_name": fmt.Sprintf("podMonitor/%s/%s/0", m.Metadata.Namespace, m.Metadata.Name),
			"honor_labels": end.HonorLabels, "relabel_configs": relabelings, "static_configs": found}},
	})
}
