package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"spillway/agent/policy"
)

// selector stands for the parser of label selectors, which refuses a text without an operator.
func selector(text string) (policy.Selector, error) {
	if !strings.ContainsAny(text, "=(") {
		return policy.Selector{}, fmt.Errorf("label selector %q", text)
	}
	return policy.Selector{Text: text, Match: func(map[string]string) bool { return false }}, nil
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string // parts of the error; none: it must parse
	}{
		{"empty file", "", nil},
		{"only comments", "# nothing\n", nil},
		{"everything", "mode: enforce\nthresholds: {alertPercent: 80, evictPercent: 90, targetPercent: 70}\ncooldown: 30s\nhourlyCap: 3\nprofile: classic\nprotection:\n  namespaces: [a, b]\nsampling: {fastest: 50ms, slowest: 500ms}\ncri: {endpoint: none, events: false}\nlog:\n  level: debug\n", nil},
		{"unknown key", "mode: observe\nthreshholds: {}\n", []string{"line 2", `unknown key "threshholds"`}},
		{"unknown nested key", "thresholds:\n  alertPercent: 80\n  evict: 90\n", []string{"line 3", `unknown key "evict"`}},
		{"key twice", "mode: observe\nmode: enforce\n", []string{"line 2: mode: given twice, first in line 1"}},
		{"wrong mode", "mode: kill\n", []string{"line 1", "mode", `"kill"`, "observe or enforce"}},
		{"text for a number", "thresholds:\n  alertPercent: high\n", []string{`line 2: thresholds.alertPercent: "high", want a number`}},
		{"a list for a number", "thresholds:\n  alertPercent: [1]\n", []string{"line 2: thresholds.alertPercent: a list, want a number"}},
		{"text for a whole number", "roundLimit: two\n", []string{`line 1: roundLimit: "two", want a whole number`}},
		{"text for a ceiling", "protection: {priorityCeiling: high}\n", []string{`line 1: protection.priorityCeiling: "high", want a whole number`}},
		{"number for a duration", "cooldown: 90\n", []string{`line 1: cooldown: "90", want a duration such as 90s or 100ms`}},
		{"map for a duration", "cooldown: {a: b}\n", []string{"line 1: cooldown: keys with values, want a duration"}},
		{"no duration", "cooldown:\nhistory: {workloadCooldown: 0}\n", nil},
		{"text for a list", "protection:\n  namespaces: a\n", []string{`line 2: protection.namespaces: "a", want a list of strings`}},
		{"a list of lists", "protection:\n  namespaces: [a, [b]]\n", []string{"line 2: protection.namespaces: a list, want a list of strings"}},
		{"a list for a text", "mode: [observe]\n", []string{"line 1: mode: a list, want a text"}},
		{"text for keys", "sampling: fast\n", []string{`line 1: sampling: "fast", want keys with values`}},
		{"text for weights", "weights: all\n", []string{`line 1: weights: "all", want keys with values`}},
		{"text for a weight", "weights:\n  age: much\n", []string{`line 2: weights.age: "much", want a number`}},
		{"a weight twice", "weights:\n  age: 1\n  age: 2\n", []string{"line 3: weights.age: given twice, first in line 2"}},
		{"an alias", "cri: &none {endpoint: none}\nkubelet: {configFile: &f /a, dropInDir: *f}\n", nil},
		{"an alias of itself", "cri: &c {endpoint: *c}\n", []string{"line 1: cri.endpoint: keys with values, want a text"}},
		{"a long text", "hourlyCap: " + strings.Repeat("x", 1000) + "\n", []string{`xxx", want a whole number`}},
		{"evict below alert", "thresholds:\n  alertPercent: 90\n  evictPercent: 85\n", []string{"line 3", "evictPercent", "below alertPercent"}},
		{"negative percentage", "thresholds:\n  alertPercent: -3\n", []string{"line 2", "alertPercent", "1 to 100"}},
		{"not a number", "thresholds:\n  evictPercent: .nan\n", []string{"line 2", "evictPercent", "1 to 100"}},
		{"target above evict", "thresholds:\n  targetPercent: 95\n", []string{"line 2", "targetPercent", "below evictPercent"}},
		{"sampling too fast", "sampling:\n  fastest: 1ms\n", []string{"line 2", "sampling.fastest", "20ms to 200ms"}},
		{"sampling too slow", "sampling:\n  slowest: 2s\n", []string{"line 2", "sampling.slowest", "to 1s"}},
		{"slowest is faster", "sampling:\n  fastest: 100ms\n  slowest: 50ms\n", []string{"line 3", "sampling.slowest", "fastest (100ms)"}},
		{"cap of zero", "hourlyCap: 0\n", []string{"line 1", "hourlyCap", "1 to 100"}},
		{"unknown preset", "preset: huge\n", []string{"line 1", "preset", "small (under 10 nodes), medium (10 to 50) or large"}},
		{"round limit", "mode: observe\nroundLimit: 9\n", []string{"line 2", "roundLimit", "9, want 1 to 5"}},
		{"baseline", "thresholds: {baselinePercent: 101}\n", []string{"line 1", "thresholds.baselinePercent", "101, want 0"}},
		{"cluster", "hpa: {respect: false}\nnoRoom: evict\nexcludedNodes: [spare]\nunknown: {budget: hold, scaler: hold, room: hold}\n", nil},
		{"no stance", "noRoom: maybe\n", []string{"line 1", "noRoom", `"maybe", want evict or hold`}},
		{"an empty stance", "unknown:\n  budget: ''\n", []string{"line 2", "unknown.budget", "empty, want evict or hold"}},
		{"stances", "unknown:\n  scaler: x\n  room: y\n", []string{"line 2: unknown.scaler", "line 3: unknown.room"}},
		{"an excluded node without a name", "excludedNodes: ['']\n", []string{"line 1", "excludedNodes", "names of nodes"}},
		{"brake", "brake: true\n", nil},
		{"a brake that is no word", "mode: enforce\nbrake: maybe\n", []string{"line 2", "true or false"}},
		{"a respect that is no word", "hpa: {respect: maybe}\n", []string{"line 1", "true or false"}},
		{"pod series", "metrics: {podSeries: 1001}\n", []string{"line 1", "metrics.podSeries", "1001, want 0"}},
		{"recording", "recording: {maxMiB: -1}\n", []string{"line 1", "recording.maxMiB", "-1, want 0"}},
		{"history", "history:\n  repeatCount: 3\n  workloadCooldown: 25h\n", []string{"line 3", "history.workloadCooldown", "0s to 24h"}},
		{"unknown profile", "profile: gentle\n", []string{"line 1", "profile", "leak-aware or classic"}},
		{"protections", "protection:\n  labels: [tier=database, 'app in (a,b)']\n  namePrefixes: [redis-]\n  priorityCeiling: 1000\n  lastReplica: true\n", nil},
		{"weights", "weights: {growth-share: 50, age: 50}\n", nil},
		{"weights of nothing", "weights:\n  age: 0\n", []string{"line 1", "weights"}},
		{"a negative weight", "weights:\n  age: -1\n", []string{"line 2", "weights.age"}},
		{"an unknown term", "weights:\n  size: 1\n", []string{"line 2", "weights.size"}},
		{"a selector that does not parse", "protection:\n  labels: ['a in b']\n", []string{"line 2", "protection.labels", "a in b", "tier=database"}},
		{"a selector of everything", "protection:\n  labels: ['']\n", []string{"line 2", "protection.labels", `""`}},
		{"a prefix of everything", "protection:\n  namePrefixes: ['']\n", []string{"line 2", "protection.namePrefixes", "every pod"}},
		{"a ceiling out of range", "protection:\n  priorityCeiling: 2000000000\n", []string{"line 2", "protection.priorityCeiling", "1000000000"}},
		{"log level", "log:\n  level: loud\n", []string{"line 2", `"loud"`, "debug, info, warn, error"}},
		{"endpoint", "cri:\n  endpoint: tcp://1.2.3.4:5\n", []string{"line 2", "cri.endpoint", "unix:///path"}},
		{"two faults at once", "mode: x\nhourlyCap: -1\n", []string{"line 1", "line 2"}},
		{"two documents", "mode: observe\n---\nmode: enforce\n", []string{"more than one YAML document"}},
		{"not yaml", "mode: [\n", []string{"line"}},
		{"a list", "- a\n", []string{"line 1: a list, want keys with values"}},
		{"nothing", "~\n", nil},
		{"several faults of kind", "mode: [x]\nhourlyCap: y\nfoo: z\n", []string{"line 1", "line 2", "line 3"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text), selector)
			if len(tc.want) == 0 {
				if err != nil {
					t.Fatalf("error %v, want none", err)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			if len(err.Error()) > 300 {
				t.Errorf("an error of %d bytes: %.100q", len(err.Error()), err)
			}
			if strings.Contains(err.Error(), "config.") {
				t.Errorf("error %q shows a Go type", err)
			}
		})
	}
}

// TestLoadOfAnySize: what is too large is refused for that, before it is parsed; what would unfold into much too.
func TestLoadOfAnySize(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
	for i := range 9 {
		bomb += fmt.Sprintf("a%d: &a%d [%s*a%d]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 8), i)
	}
	for _, tc := range []struct{ name, text, want string }{
		{"10 MB", "mode: observe\n" + strings.Repeat("# nothing\n", 1<<20), "larger than 1048576 bytes"},
		{"aliases of aliases", bomb, "unknown key \"a9\""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Load(file, selector)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
				t.Errorf("%d MiB were allocated for it", n>>20)
			}
		})
	}
}

func TestParseKeepsDefaults(t *testing.T) {
	c, err := Parse([]byte("thresholds:\n  alertPercent: 70\n"), selector)
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != Observe || c.Thresholds.EvictPercent != 93 || c.Cooldown != 90*time.Second || len(c.Protection.Namespaces) != 4 {
		t.Errorf("defaults lost: %+v", c)
	}
}

// The shipped file shows every key, and its value is the default.
func TestShippedConfigIsTheDefault(t *testing.T) {
	data, err := os.ReadFile("../../deploy/base/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(data, selector)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("defaults (-) against the shipped file (+):\n%s", diff)
	}
	// What a preset or a variable sets is commented out, as a key that is given overrides it; the comment shows the default.
	shown := regexp.MustCompile(`(?m)^( *)# (alertPercent|evictPercent|roundLimit|mode|endpoint): `).ReplaceAll(data, []byte("$1$2: "))
	if got, err = Parse(shown, selector); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("defaults (-) against what the comments show (+):\n%s", diff)
	}
	var root map[string]any
	if err := yaml.Unmarshal(shown, &root); err != nil {
		t.Fatal(err)
	}
	wantKeys(t, root, reflect.TypeFor[Config](), "")
}

// wantKeys wants each key of a config struct in a file.
func wantKeys(t *testing.T, file map[string]any, config reflect.Type, prefix string) {
	for f := range config.Fields() {
		key := f.Tag.Get("yaml")
		v, ok := file[key]
		if !ok {
			t.Errorf("key %s%s is not shown", prefix, key)
		}
		if wants[f.Type.Kind()] == "" {
			t.Errorf("key %s%s: an error would not say what it takes", prefix, key)
		}
		if f.Type.Kind() == reflect.Struct {
			inner, _ := v.(map[string]any)
			wantKeys(t, inner, f.Type, prefix+key+".")
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("mode: enforce\n"))
	f.Add([]byte("thresholds: {alertPercent: 1e400}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, selector)
		if err != nil {
			return
		}
		if _, err := c.Policy(selector); err != nil {
			t.Errorf("accepted %q: %v", data, err)
		}
	})
}

func TestPresets(t *testing.T) {
	for _, tc := range []struct {
		text         string
		alert, evict float64
		round        int
	}{
		{"", 88, 93, 2},
		{"preset: small", 85, 90, 2},
		{"preset: medium", 88, 93, 3},
		{"preset: large", 90, 95, 5},
		{"preset: large\nroundLimit: 1\nthresholds: {evictPercent: 97}", 90, 97, 1},
		{"roundLimit: 1\npreset: large", 90, 95, 1},
	} {
		c, err := Parse([]byte(tc.text), selector)
		if err != nil || c.Thresholds.AlertPercent != tc.alert || c.Thresholds.EvictPercent != tc.evict || c.RoundLimit != tc.round || c.Thresholds.TargetPercent != 80 {
			t.Errorf("%q: %+v, round limit %d, %v", tc.text, c.Thresholds, c.RoundLimit, err)
		}
	}
}

// TestTextIsRead: a recording holds the configuration in force.
func TestTextIsRead(t *testing.T) {
	ceiling := int32(1000)
	for _, change := range []func(*Config){
		func(*Config) {},
		func(c *Config) {
			c.Mode, c.Preset, c.RoundLimit, c.Cooldown, c.Log.Level = Enforce, "large", 1, 95*time.Second, "warn"
			c.Weights = policy.Weights{policy.TermQoS: 0.1 + 0.2}
			c.Protection.PriorityCeiling, c.Protection.Labels = &ceiling, []string{"tier in (a,b)"}
			c.Thresholds.AlertPercent = 87.1
		},
	} {
		want := Default()
		change(&want)
		text, err := want.Text()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse([]byte(text), selector)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	}
}

// TestVariables: they stand for keys that the file does not have, and a file that says observe is stronger.
func TestVariables(t *testing.T) {
	t.Setenv(modeVariable, "enforce")
	t.Setenv(endpointVariable, "none")
	for text, want := range map[string]Config{
		"":                               {Mode: Enforce, CRI: CRI{Endpoint: "none"}},
		"mode: observe\n":                {Mode: Observe, CRI: CRI{Endpoint: "none"}},
		"cri: {endpoint: unix:///a.s}\n": {Mode: Enforce, CRI: CRI{Endpoint: "unix:///a.s"}},
	} {
		c, err := Parse([]byte(text), selector)
		if err != nil || c.Mode != want.Mode || c.CRI.Endpoint != want.CRI.Endpoint {
			t.Errorf("%q: mode %s, endpoint %q, %v; want %s, %q", text, c.Mode, c.CRI.Endpoint, err, want.Mode, want.CRI.Endpoint)
		}
	}
	t.Setenv(modeVariable, "yes")
	if _, err := Parse(nil, selector); err == nil || !strings.Contains(err.Error(), modeVariable) {
		t.Errorf("mode yes: %v, want an error that names %s", err, modeVariable)
	}
}
