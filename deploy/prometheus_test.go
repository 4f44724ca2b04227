package deploy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"spillway/agent/metrics"
	"spillway/agent/status"
)

type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Record, Alert, Expr, For string
			Labels, Annotations      map[string]string
		}
	}
}

func rules(t *testing.T) ruleFile {
	t.Helper()
	text, err := os.ReadFile("prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out ruleFile
	if err := yaml.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOperatorRulesAreInStep: the operator reads the same rules.
func TestOperatorRulesAreInStep(t *testing.T) {
	text, err := os.ReadFile("components/prometheus-operator/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var operator struct{ Spec ruleFile }
	if err := yaml.Unmarshal(text, &operator); err != nil {
		t.Fatal(err)
	}
	const label = "kube-prometheus-stack" // by which its Prometheus selects, unless its values say otherwise
	for name, o := range load(t, "components/prometheus-operator/rules.yaml") {
		if dig[string](o, "metadata", "labels", "release") != label {
			t.Errorf("%s has no label release: %s", name, label)
		}
	}
	for name, o := range load(t, "components/prometheus-operator/podmonitor.yaml") {
		if dig[string](o, "metadata", "labels", "release") != label {
			t.Errorf("%s has no label release: %s", name, label)
		}
	}
	if diff := cmp.Diff(rules(t), operator.Spec); diff != "" {
		t.Errorf("the operator's rules are not those of prometheus/rules.yaml: run make manifests (-rules +operator)\n%s", diff)
	}
}

// TestRunbooks: every alert has a section of its name, and every section an alert; each alert fires and resolves in a test.
func TestRunbooks(t *testing.T) {
	book, err := os.ReadFile("RUNBOOKS.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("prometheus/rules_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var sections, alerts []string
	for _, m := range regexp.MustCompile(`(?m)^## (\S+)$`).FindAllStringSubmatch(string(book), -1) {
		sections = append(sections, m[1])
	}
	for _, g := range rules(t).Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts = append(alerts, r.Alert)
			// No alert is critical whatever the mode.
			severities := []string{"info", "warning", `{{ if eq $labels.mode "enforce" }}critical{{ else }}info{{ end }}`}
			if want := "https://runbooks.invalid/RUNBOOKS.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want || r.Annotations["summary"] == "" || r.Annotations["description"] == "" || !slices.Contains(severities, r.Labels["severity"]) {
				t.Errorf("%s: labels %v, annotations %v; want a severity of %q, a summary, a description and the runbook_url %s", r.Alert, r.Labels, r.Annotations, severities, want)
			}
			if !strings.Contains(string(tests), "alertname: "+r.Alert+"\n") {
				t.Errorf("%s has no test in prometheus/rules_test.yaml", r.Alert)
			}
			if pages := strings.Contains(r.Labels["severity"], "critical"); pages != strings.Contains(string(tests), `name: "`+r.Alert+": observe mode") {
				t.Errorf("%s: what is critical in enforce mode, and nothing else, is played in observe mode too", r.Alert)
			}
		}
	}
	slices.Sort(sections)
	slices.Sort(alerts)
	if diff := cmp.Diff(alerts, sections); diff != "" {
		t.Errorf("alerts and sections of RUNBOOKS.md (-alerts +sections):\n%s", diff)
	}
}

var update = flag.Bool("update", false, "write docs/metrics.md")

// TestMetricsPage: the page says what the code says. Write it with go test ./deploy -run TestMetricsPage -update.
func TestMetricsPage(t *testing.T) {
	var page bytes.Buffer
	page.WriteString("# Metrics\n\nWhat an agent serves on port 9464, path `/metrics`, beside the usual `go_*` and `process_*`. Written from the code by\n" +
		"`go test ./deploy -run TestMetricsPage -update`. A figure that is unknown has no series.\n\n| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n")
	for _, d := range metrics.New("1.0", metrics.DefaultPods, func() *status.Status { return nil }).Describe() {
		unit := ""
		for _, u := range [][2]string{{"_timestamp_seconds", "seconds since 1970"}, {"_bytes_per_second", "bytes per second"}, {"_bytes", "bytes"}, {"_bytes_total", "bytes"}, {"_seconds", "seconds"}, {"_seconds_total", "seconds"}, {"_ratio", "0 to 1"}} {
			if strings.HasSuffix(d.Name, u[0]) {
				unit = u[1]
				break
			}
		}
		labels := ""
		for _, l := range d.Labels {
			labels += ", `" + l + "`"
		}
		fmt.Fprintf(&page, "| `%s` | %s | %s | %s | %s |\n", d.Name, d.Type, unit, strings.TrimPrefix(labels, ", "), strings.ReplaceAll(d.Help, "|", `\|`))
	}
	if *update {
		if err := os.WriteFile("docs/metrics.md", page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(page.String(), string(got)); diff != "" {
		t.Errorf("docs/metrics.md is not what the code says: run go test ./deploy -run TestMetricsPage -update (-code +page)\n%s", diff)
	}
}

// TestExpressionsNameWhatIsThere: rules and dashboard ask for metrics that the agent has, or that a rule records.
func TestExpressionsNameWhatIsThere(t *testing.T) {
	known := map[string]bool{}
	m := metrics.New("1.0", metrics.DefaultPods, func() *status.Status { return nil })
	for _, d := range m.Describe() {
		known[d.Name] = true
	}
	families, err := m.Registry().Gather() // those of the Go runtime and the process
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		known[f.GetName()] = true
	}
	exprs := map[string]string{}
	for _, g := range rules(t).Groups {
		for _, r := range g.Rules {
			exprs["rule "+r.Record+r.Alert] = r.Expr
			if r.Record != "" {
				known[r.Record] = true
			}
		}
	}
	text, err := os.ReadFile("grafana/spillway.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Annotations struct{ List []struct{ Name, Expr string } }
		Panels      []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	for _, a := range board.Annotations.List {
		exprs["annotation "+a.Name] = a.Expr
	}
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			exprs["panel "+p.Title] += " " + q.Expr
		}
	}
	if len(exprs) < 30 {
		t.Errorf("%d expressions were found", len(exprs))
	}
	names := regexp.MustCompile(`\b((?:[a-z_]+:)?spillway[_:][a-z0-9_:]+|process_[a-z_]+|go_[a-z_]+)`)
	for where, expr := range exprs {
		for _, name := range names.FindAllString(expr, -1) {
			if base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, ""); !known[name] && !known[base] {
				t.Errorf("%s asks for %s, which the agent does not have", where, name)
			}
		}
	}
}
