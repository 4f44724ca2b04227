package deploy_test

import (
	"encoding/json"
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
	text, err := os.ReadFile("overlays/prometheus-operator/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var operator struct{ Spec ruleFile }
	if err := yaml.Unmarshal(text, &operator); err != nil {
		t.Fatal(err)
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
			if want := "deploy/RUNBOOKS.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want || r.Annotations["summary"] == "" || !slices.Contains([]string{"info", "warning", "critical"}, r.Labels["severity"]) {
				t.Errorf("%s: labels %v, annotations %v; want a severity, a summary and the runbook %s", r.Alert, r.Labels, r.Annotations, want)
			}
			if !strings.Contains(string(tests), "alertname: "+r.Alert+"\n") {
				t.Errorf("%s has no test in prometheus/rules_test.yaml", r.Alert)
			}
		}
	}
	slices.Sort(sections)
	slices.Sort(alerts)
	if diff := cmp.Diff(alerts, sections); diff != "" {
		t.Errorf("alerts and sections of RUNBOOKS.md (-alerts +sections):\n%s", diff)
	}
}

// TestExpressionsNameWhatIsThere: rules and dashboard ask for metrics that the agent has, or that a rule records.
func TestExpressionsNameWhatIsThere(t *testing.T) {
	known := map[string]bool{}
	for _, name := range metrics.New("1.0", metrics.DefaultPods, func() *status.Status { return nil }).Names() {
		known[name] = true
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
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			exprs["panel "+p.Title] += " " + q.Expr
		}
	}
	if len(exprs) < 30 {
		t.Errorf("%d expressions were found", len(exprs))
	}
	names := regexp.MustCompile(`\b(spillway[_:][a-z0-9_:]+|process_[a-z_]+|go_[a-z_]+)`)
	for where, expr := range exprs {
		for _, name := range names.FindAllString(expr, -1) {
			if base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, ""); !known[name] && !known[base] {
				t.Errorf("%s asks for %s, which the agent does not have", where, name)
			}
		}
	}
}
