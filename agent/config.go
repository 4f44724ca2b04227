package agent

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/policy"
)

// maxConfigBytes bounds a config file: a ConfigMap holds no more than 1 MiB.
const maxConfigBytes = 1 << 20

// Mode says how far the agent goes.
type Mode string

// The modes. Standalone has no Kubernetes and is chosen by a flag, not by the file.
const (
	Observe    Mode = "observe"
	Enforce    Mode = "enforce"
	Standalone Mode = "standalone"
)

// Config is what a user sets in the config file. Its keys are the yaml names; DefaultConfig has the defaults.
type Config struct {
	Mode          Mode             `yaml:"mode"`
	Preset        Preset           `yaml:"preset"`
	Thresholds    ThresholdConfig  `yaml:"thresholds"`
	EvictWhenFlat bool             `yaml:"evictWhenFlat"`
	Cooldown      Duration         `yaml:"cooldown"`
	RoundLimit    int              `yaml:"roundLimit"`
	HourlyCap     int              `yaml:"hourlyCap"`
	Budget        BudgetConfig     `yaml:"budget"`
	ShortenGrace  bool             `yaml:"shortenGrace"`
	ReclaimCache  bool             `yaml:"reclaimCache"`
	Brake         bool             `yaml:"brake"`
	Profile       policy.Profile   `yaml:"profile"`
	Patience      policy.Patience  `yaml:"patience"`
	Weights       policy.Weights   `yaml:"weights"`
	History       HistoryConfig    `yaml:"history"`
	Protection    ProtectionConfig `yaml:"protection"`
	HPA           HPAConfig        `yaml:"hpa"`
	NoRoom        policy.Stance    `yaml:"noRoom"`
	ExcludedNodes []string         `yaml:"excludedNodes"`
	Unknown       UnknownConfig    `yaml:"unknown"`
	Sampling      SamplingConfig   `yaml:"sampling"`
	Recording     RecordingConfig  `yaml:"recording"`
	CRI           CRIConfig        `yaml:"cri"`
	Kubelet       KubeletConfig    `yaml:"kubelet"`
	Metrics       MetricsConfig    `yaml:"metrics"`
	Log           LogConfig        `yaml:"log"`
}

// ThresholdConfig holds percentages of allocatable memory. With a baseline, the usual use of the cluster's nodes, the alert
// threshold is at most 10 points above it, and at least 70.
type ThresholdConfig struct {
	AlertPercent    float64 `yaml:"alertPercent"`
	EvictPercent    float64 `yaml:"evictPercent"`
	TargetPercent   float64 `yaml:"targetPercent"`
	BaselinePercent float64 `yaml:"baselinePercent"`
}

// BudgetConfig bounds evictions by the number of the node's pods, percent: see evict.Shares.
type BudgetConfig struct {
	PercentPerHour       float64 `yaml:"percentPerHour"`
	PercentPerDay        float64 `yaml:"percentPerDay"`
	ReliefPercentPerHour float64 `yaml:"reliefPercentPerHour"`
	ReliefPercentPerDay  float64 `yaml:"reliefPercentPerDay"`
}

// Preset names the defaults for a cluster of some size: the smaller it is, the less room a node's pods find elsewhere, and
// the earlier an operator wants to know.
type Preset string

// presets are the thresholds of alert and evict, and the round limit; keys beside the preset override them.
var presets = map[Preset]struct {
	alert, evict float64
	round        int
}{
	"small":  {85, 90, 2}, // under 10 nodes
	"medium": {88, 93, 3}, // 10 to 50
	"large":  {90, 95, 5},
}

// HistoryConfig says what follows from past evictions of this node: see policy.HistoryConfig.
type HistoryConfig struct {
	WorkloadCooldown Duration `yaml:"workloadCooldown"`
	RepeatCount      int      `yaml:"repeatCount"`
	RepeatWindow     Duration `yaml:"repeatWindow"`
	BoomerangWindow  Duration `yaml:"boomerangWindow"`
	AwaitReplacement bool     `yaml:"awaitReplacement"`
}

// RecordingConfig bounds the files that hold what was seen and decided from alert to calm; 0 MiB: no recording.
type RecordingConfig struct {
	MaxMiB int `yaml:"maxMiB"`
}

// ProtectionConfig names what is never evicted beyond the built-in protections.
type ProtectionConfig struct {
	Namespaces   []string `yaml:"namespaces"`
	Labels       []string `yaml:"labels"`
	NamePrefixes []string `yaml:"namePrefixes"`
	// RecreatingOwners are kinds of controllers, "Kind.group", that create an evicted pod again, beside those that are known to.
	RecreatingOwners []string `yaml:"recreatingOwners"`
	PriorityCeiling  *int32   `yaml:"priorityCeiling"`
	LastReplica      bool     `yaml:"lastReplica"`
	EmptyDir         bool     `yaml:"emptyDir"`
	MemoryEmptyDir   bool     `yaml:"memoryEmptyDir"`
	VolumeClaims     bool     `yaml:"volumeClaims"`
}

// policy returns what the policy needs of c, and what is wrong with it.
func (c *Config) policy() (policy.Config, []finding) {
	p := c.Protection
	out := policy.Config{
		Profile: c.Profile, Patience: c.Patience, KeepGrace: !c.ShortenGrace, ProtectedNamespaces: p.Namespaces, ProtectedPrefixes: p.NamePrefixes, RecreatingOwners: p.RecreatingOwners, PriorityCeiling: p.PriorityCeiling,
		ProtectLastReplica: p.LastReplica, ProtectEmptyDir: p.EmptyDir, ProtectMemoryEmptyDir: p.MemoryEmptyDir, ProtectPVC: p.VolumeClaims,
	}
	h := c.History
	out.History = policy.HistoryConfig{WorkloadCooldown: time.Duration(h.WorkloadCooldown), RepeatCount: h.RepeatCount,
		RepeatWindow: time.Duration(h.RepeatWindow), BoomerangWindow: time.Duration(h.BoomerangWindow), AwaitReplacement: h.AwaitReplacement}
	if len(c.Weights) > 0 {
		out.Weights = c.Weights
	}
	var bad []finding
	out.Cluster, bad = c.cluster()
	for _, text := range p.Labels {
		s, err := kube.ParseSelector(text)
		if err != nil {
			bad = append(bad, finding{"protection.labels", err.Error() + ", want a label selector such as tier=database"})
			continue
		}
		out.ProtectedLabels = append(out.ProtectedLabels, s)
	}
	for _, f := range out.Problems() {
		bad = append(bad, finding{f.Field, f.Problem})
	}
	return out, bad
}

// SamplingConfig bounds the time between two readings of the node: slowest far from a threshold, fastest near one.
type SamplingConfig struct {
	Fastest Duration `yaml:"fastest"`
	Slowest Duration `yaml:"slowest"`
}

// CRIConfig says where the container runtime listens; "" tries the well-known sockets, "none" does without. Without
// Events the runtime is only polled.
type CRIConfig struct {
	Endpoint string `yaml:"endpoint"`
	Events   bool   `yaml:"events"`
}

// KubeletConfig says where the kubelet's configuration lies when /configz cannot be read.
type KubeletConfig struct {
	ConfigFile string `yaml:"configFile"`
	DropInDir  string `yaml:"dropInDir"`
	// MemoryAvailable is the hard threshold, such as 100Mi or 5%, when neither /configz nor the file can be read.
	MemoryAvailable string `yaml:"memoryAvailable"`
}

// MetricsConfig says where metrics and the liveness probe are served; "" takes the flag, "none" switches them off.
type MetricsConfig struct {
	Listen    string `yaml:"listen"`
	PodSeries int    `yaml:"podSeries"` // so many pods, the largest first, have series of their own
}

// LogConfig says how much is logged.
type LogConfig struct {
	Level LogLevel `yaml:"level"`
}

// Duration is a time.Duration that is written as in Go: 90s, 100ms.
type Duration time.Duration

// UnmarshalYAML accepts only a string with a unit.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %q is not a duration such as 90s or 100ms", n.Line, n.Value)}}
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// LogLevel is debug, info, warn or error.
type LogLevel slog.Level

// UnmarshalYAML accepts the names of the levels.
func (l *LogLevel) UnmarshalYAML(n *yaml.Node) error {
	switch n.Value {
	case "debug", "info", "warn", "error":
		var level slog.Level
		if err := level.UnmarshalText([]byte(n.Value)); err != nil {
			return err
		}
		*l = LogLevel(level)
		return nil
	}
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %q is not a log level: debug, info, warn, error", n.Line, n.Value)}}
}

// MarshalYAML writes what UnmarshalYAML reads.
func (l LogLevel) MarshalYAML() (any, error) { return strings.ToLower(slog.Level(l).String()), nil }

func (l LogLevel) level() slog.Level { return slog.Level(l) }

// limits are those of evictions.
func (c *Config) limits() evict.Limits {
	return evict.Limits{DryRun: c.Mode != Enforce, Cooldown: time.Duration(c.Cooldown), RoundLimit: c.RoundLimit, KeepGrace: !c.ShortenGrace, HourlyCap: c.HourlyCap,
		Shares: evict.Shares{Hour: c.Budget.PercentPerHour, Day: c.Budget.PercentPerDay, ReliefHour: c.Budget.ReliefPercentPerHour, ReliefDay: c.Budget.ReliefPercentPerDay}}
}

// Variables that stand for a key where the file is silent, so that an overlay of the DaemonSet need not rewrite the file.
const (
	modeVariable     = "SPILLWAY_MODE"
	endpointVariable = "SPILLWAY_CRI_ENDPOINT"
)

// DefaultConfig returns the configuration of an empty file.
func DefaultConfig() Config {
	h := policy.DefaultHistory()
	return Config{
		Mode:       Mode(cmp.Or(os.Getenv(modeVariable), string(Observe))),
		Thresholds: ThresholdConfig{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80},
		Cooldown:   Duration(evict.DefaultCooldown),
		RoundLimit: policy.DefaultRoundLimit,
		HourlyCap:  evict.DefaultHourlyCap,
		Budget: BudgetConfig{PercentPerHour: evict.DefaultShares.Hour, PercentPerDay: evict.DefaultShares.Day,
			ReliefPercentPerHour: evict.DefaultShares.ReliefHour, ReliefPercentPerDay: evict.DefaultShares.ReliefDay},
		ShortenGrace: true,
		ReclaimCache: true,
		Profile:      policy.LeakAware,
		Patience:     policy.Balanced,
		Protection:   ProtectionConfig{Namespaces: []string{"kube-system", "kube-public", "monitoring", "logging"}},
		HPA:          HPAConfig{Respect: true},
		NoRoom:       policy.Hold,
		Unknown:      UnknownConfig{Budget: policy.Evict, Scaler: policy.Evict, Room: policy.Evict},
		Sampling:     SamplingConfig{Fastest: Duration(20 * time.Millisecond), Slowest: Duration(time.Second)},
		History: HistoryConfig{WorkloadCooldown: Duration(h.WorkloadCooldown), RepeatCount: h.RepeatCount,
			RepeatWindow: Duration(h.RepeatWindow), BoomerangWindow: Duration(h.BoomerangWindow), AwaitReplacement: h.AwaitReplacement},
		Recording: RecordingConfig{MaxMiB: 64},
		CRI:       CRIConfig{Endpoint: os.Getenv(endpointVariable), Events: true},
		Kubelet:   KubeletConfig{ConfigFile: "/var/lib/kubelet/config.yaml"},
		Metrics:   MetricsConfig{PodSeries: metrics.DefaultPods},
	}
}

// pausedBeside says why evictions are paused by a file beside the config file, "" when they are not: where that is a mounted
// ConfigMap, the file is its key, which was the pause switch of earlier versions. A pause must not be lost.
func pausedBeside(config string) string {
	path := filepath.Join(filepath.Dir(config), kube.PauseKey)
	text, err := os.ReadFile(path)
	switch v := strings.TrimSpace(string(text)); {
	case config == "" || errors.Is(err, fs.ErrNotExist):
		return ""
	case err != nil:
		return fmt.Sprintf("the pause switch beside the config file cannot be read: %v", err)
	case v == "" || v == "false":
		return ""
	default:
		return fmt.Sprintf("%s is %q: take the key %q out of the config's ConfigMap to go on; the pause switch is a ConfigMap of its own now, spillway-pause", path, v, kube.PauseKey)
	}
}

// readConfigText reads a config file.
func readConfigText(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	if len(data) > maxConfigBytes {
		return nil, fmt.Errorf("read config %s: larger than %d bytes", path, maxConfigBytes)
	}
	return data, nil
}

// ReadConfig reads and checks a config file. Its errors name the file, the line and the key, and what would be right.
func ReadConfig(path string) (Config, error) {
	data, err := readConfigText(path)
	if err != nil {
		return Config{}, err
	}
	c, err := ParseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("config %s: %w", path, err)
	}
	return c, nil
}

// ParseConfig parses and checks a config file's text.
func ParseConfig(data []byte) (Config, error) {
	c := DefaultConfig()
	var size struct {
		Preset Preset `yaml:"preset"`
	}
	if yaml.Unmarshal(data, &size) == nil { // what is wrong otherwise is said below
		if p, ok := presets[size.Preset]; ok {
			c.Thresholds.AlertPercent, c.Thresholds.EvictPercent, c.RoundLimit = p.alert, p.evict, p.round
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, explainYAML(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one YAML document")
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return Config{}, explainYAML(err)
	}
	var errs []error
	for _, f := range c.check() {
		errs = append(errs, fmt.Errorf("%s%s: %s", lineOf(&root, f.key), f.key, f.problem))
	}
	return c, errors.Join(errs...)
}

type finding struct{ key, problem string }

// check returns every value that is out of range, with the accepted range.
func (c *Config) check() []finding {
	var out []finding
	bad := func(key, format string, args ...any) { out = append(out, finding{key, fmt.Sprintf(format, args...)}) }
	if c.Mode != Observe && c.Mode != Enforce {
		bad("mode", "%q, want observe or enforce (of the file, else of the variable "+modeVariable+")", c.Mode)
	}
	if _, ok := presets[c.Preset]; !ok && c.Preset != "" {
		bad("preset", "%q, want small (under 10 nodes), medium (10 to 50) or large", string(c.Preset))
	}
	t := c.Thresholds
	for _, p := range []struct {
		key string
		v   float64
	}{{"thresholds.alertPercent", t.AlertPercent}, {"thresholds.evictPercent", t.EvictPercent}, {"thresholds.targetPercent", t.TargetPercent}} {
		if !(p.v >= 1 && p.v <= 100) { // a NaN fails too
			bad(p.key, "%v, want 1 to 100", p.v)
		}
	}
	if t.EvictPercent < t.AlertPercent {
		bad("thresholds.evictPercent", "%v is below alertPercent %v: an eviction would come before its alert", t.EvictPercent, t.AlertPercent)
	}
	if t.TargetPercent >= t.EvictPercent {
		bad("thresholds.targetPercent", "%v, want below evictPercent %v", t.TargetPercent, t.EvictPercent)
	}
	if d := time.Duration(c.Cooldown); d < 10*time.Second || d > time.Hour {
		bad("cooldown", "%s, want 10s to 1h", d)
	}
	if b := t.BaselinePercent; !(b >= 0 && b <= 100) {
		bad("thresholds.baselinePercent", "%v, want 0 (not known) to 100", b)
	}
	if c.RoundLimit < 1 || c.RoundLimit > policy.MaxRound {
		bad("roundLimit", "%d, want 1 to %d", c.RoundLimit, policy.MaxRound)
	}
	if m := c.Recording.MaxMiB; m < 0 || m > 4096 {
		bad("recording.maxMiB", "%d, want 0 (no recording) to 4096", m)
	}
	if n := c.Metrics.PodSeries; n < 0 || n > 1000 {
		bad("metrics.podSeries", "%d, want 0 (none) to 1000", n)
	}
	if c.HourlyCap < 1 || c.HourlyCap > 100 {
		bad("hourlyCap", "%d, want 1 to 100", c.HourlyCap)
	}
	for _, p := range []struct {
		key string
		v   float64
	}{
		{"budget.percentPerHour", c.Budget.PercentPerHour}, {"budget.percentPerDay", c.Budget.PercentPerDay},
		{"budget.reliefPercentPerHour", c.Budget.ReliefPercentPerHour}, {"budget.reliefPercentPerDay", c.Budget.ReliefPercentPerDay},
	} {
		if !(p.v >= 0 && p.v <= 100) {
			bad(p.key, "%v, want 0 (no bound) to 100", p.v)
		}
	}
	if c.Profile == "" {
		bad("profile", "empty, want %s or %s", policy.LeakAware, policy.Classic)
	}
	_, wrong := c.policy()
	out = append(out, wrong...)
	fastest, slowest := time.Duration(c.Sampling.Fastest), time.Duration(c.Sampling.Slowest)
	if fastest < 20*time.Millisecond || fastest > 200*time.Millisecond {
		bad("sampling.fastest", "%s, want 20ms to 200ms", fastest)
	}
	if slowest < fastest || slowest > time.Second {
		bad("sampling.slowest", "%s, want fastest (%s) to 1s", slowest, fastest)
	}
	if e := c.CRI.Endpoint; e != "" && e != "none" && !strings.HasPrefix(e, "unix://") && !strings.HasPrefix(e, "/") {
		bad("cri.endpoint", "%q, want unix:///path, a path, none, or empty", e)
	}
	return out
}

var (
	yamlLine    = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	yamlUnknown = regexp.MustCompile(`^field (\S+) not found in type .*$`)
	yamlKind    = regexp.MustCompile("^cannot unmarshal \\S+ `?([^`]*)`? ?into (\\S+)$")
)

// explainYAML rewords the library's errors: line first, then the key or value, without Go's type names.
func explainYAML(err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var errs []error
	for _, text := range te.Errors {
		line, rest := "", text
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			line, rest = "line "+m[1]+": ", m[2]
		}
		if m := yamlUnknown.FindStringSubmatch(rest); m != nil {
			rest = fmt.Sprintf("unknown key %q", m[1])
		} else if m := yamlKind.FindStringSubmatch(rest); m != nil {
			want := map[string]string{"float64": "a number", "int": "a whole number", "bool": "true or false", "[]string": "a list of strings"}[m[2]]
			if want == "" {
				want = "another kind of value"
			}
			rest = fmt.Sprintf("%q, want %s", m[1], want)
		}
		errs = append(errs, errors.New(line+rest))
	}
	return errors.Join(errs...)
}

// lineOf returns "line N: " for a dotted key, "" when the file does not have it.
func lineOf(root *yaml.Node, key string) string {
	n := root
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	line := 0
	for _, part := range strings.Split(key, ".") {
		found := false
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == part {
				line, n, found = n.Content[i].Line, n.Content[i+1], true
				break
			}
		}
		if !found {
			return ""
		}
	}
	return "line " + strconv.Itoa(line) + ": "
}
