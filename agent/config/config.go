// Package config is the config file: its keys with their defaults and checks, and following what it says while the agent runs.
package config

import (
	"cmp"
	"log/slog"
	"os"
	"time"

	"spillway/agent/policy"
)

// Mode says how far the agent goes.
type Mode string

// The modes. Standalone has no Kubernetes and is chosen by a flag, not by the file.
const (
	Observe    Mode = "observe"
	Enforce    Mode = "enforce"
	Standalone Mode = "standalone"
)

// Config is what a user sets in the config file. Its keys are the yaml names; Default has the defaults.
type Config struct {
	Mode          Mode            `yaml:"mode"`
	Preset        Preset          `yaml:"preset"`
	Thresholds    Thresholds      `yaml:"thresholds"`
	EvictWhenFlat bool            `yaml:"evictWhenFlat"`
	Cooldown      time.Duration   `yaml:"cooldown"`
	RoundLimit    int             `yaml:"roundLimit"`
	HourlyCap     int             `yaml:"hourlyCap"`
	Budget        Budget          `yaml:"budget"`
	ShortenGrace  bool            `yaml:"shortenGrace"`
	ReclaimCache  bool            `yaml:"reclaimCache"`
	Brake         bool            `yaml:"brake"`
	Profile       policy.Profile  `yaml:"profile"`
	Patience      policy.Patience `yaml:"patience"`
	Weights       policy.Weights  `yaml:"weights"`
	History       History         `yaml:"history"`
	Protection    Protection      `yaml:"protection"`
	HPA           HPA             `yaml:"hpa"`
	NoRoom        policy.Stance   `yaml:"noRoom"`
	ExcludedNodes []string        `yaml:"excludedNodes"`
	Unknown       Unknown         `yaml:"unknown"`
	Sampling      Sampling        `yaml:"sampling"`
	Recording     Recording       `yaml:"recording"`
	CRI           CRI             `yaml:"cri"`
	Kubelet       Kubelet         `yaml:"kubelet"`
	Metrics       Metrics         `yaml:"metrics"`
	Log           Log             `yaml:"log"`
}

// Thresholds holds percentages of allocatable memory. With a baseline, the usual use of the cluster's nodes, the alert
// threshold is at most 10 points above it, and at least 70.
type Thresholds struct {
	AlertPercent    float64 `yaml:"alertPercent"`
	EvictPercent    float64 `yaml:"evictPercent"`
	TargetPercent   float64 `yaml:"targetPercent"`
	BaselinePercent float64 `yaml:"baselinePercent"`
}

// Budget bounds evictions by the number of the node's pods, percent: see evict.Shares.
type Budget struct {
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

// History says what follows from past evictions of this node: see policy.HistoryConfig, which has the same fields.
type History struct {
	WorkloadCooldown time.Duration `yaml:"workloadCooldown"`
	RepeatCount      int           `yaml:"repeatCount"`
	RepeatWindow     time.Duration `yaml:"repeatWindow"`
	BoomerangWindow  time.Duration `yaml:"boomerangWindow"`
	AwaitReplacement bool          `yaml:"awaitReplacement"`
}

// Recording bounds the files that hold what was seen and decided from alert to calm; 0 MiB: no recording.
type Recording struct {
	MaxMiB int `yaml:"maxMiB"`
}

// Protection names what is never evicted beyond the built-in protections.
type Protection struct {
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

// Sampling bounds the time between two readings of the node: slowest far from a threshold, fastest near one.
type Sampling struct {
	Fastest time.Duration `yaml:"fastest"`
	Slowest time.Duration `yaml:"slowest"`
}

// CRI says where the container runtime listens; "" tries the well-known sockets, "none" does without. Without
// Events the runtime is only polled.
type CRI struct {
	Endpoint string `yaml:"endpoint"`
	Events   bool   `yaml:"events"`
}

// Kubelet says where the kubelet's configuration lies when /configz cannot be read.
type Kubelet struct {
	ConfigFile string `yaml:"configFile"`
	DropInDir  string `yaml:"dropInDir"`
	// MemoryAvailable is the hard threshold, such as 100Mi or 5%, when neither /configz nor the file can be read.
	MemoryAvailable string `yaml:"memoryAvailable"`
}

// Metrics says where metrics and the liveness probe are served; "" takes the flag, "none" switches them off.
type Metrics struct {
	Listen    string `yaml:"listen"`
	PodSeries int    `yaml:"podSeries"` // so many pods, the largest first, have series of their own
}

// HPA says what follows from HorizontalPodAutoscalers: see policy.ClusterConfig.
type HPA struct {
	Respect bool `yaml:"respect"`
}

// Unknown says for each question to the API server whether a pod may be evicted that it did not answer for: evict or hold.
type Unknown struct {
	Budget policy.Stance `yaml:"budget"`
	Scaler policy.Stance `yaml:"scaler"`
	Room   policy.Stance `yaml:"room"`
}

// Log says how much is logged.
type Log struct {
	Level LogLevel `yaml:"level"`
}

// LogLevel is debug, info, warn or error.
type LogLevel string

// Level is l as log/slog has it; info for what is none.
func (l LogLevel) Level() (level slog.Level) {
	_ = level.UnmarshalText([]byte(l))
	return level
}

// Variables that stand for a key where the file is silent, so that an overlay of the DaemonSet need not rewrite the file.
const (
	modeVariable     = "SPILLWAY_MODE"
	endpointVariable = "SPILLWAY_CRI_ENDPOINT"
)

// Default returns the configuration of an empty file.
func Default() Config {
	return Config{
		Mode:         Mode(cmp.Or(os.Getenv(modeVariable), string(Observe))),
		Thresholds:   Thresholds{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80},
		Cooldown:     90 * time.Second,
		RoundLimit:   policy.DefaultRoundLimit,
		HourlyCap:    10,
		Budget:       Budget{PercentPerHour: 5, PercentPerDay: 15, ReliefPercentPerHour: 1, ReliefPercentPerDay: 5},
		ShortenGrace: true,
		ReclaimCache: true,
		Profile:      policy.LeakAware,
		Patience:     policy.Balanced,
		Protection:   Protection{Namespaces: []string{"kube-system", "kube-public", "monitoring", "logging"}},
		HPA:          HPA{Respect: true},
		NoRoom:       policy.Hold,
		Unknown:      Unknown{Budget: policy.Evict, Scaler: policy.Evict, Room: policy.Evict},
		Sampling:     Sampling{Fastest: 20 * time.Millisecond, Slowest: time.Second},
		History:      History(policy.DefaultHistory()),
		Recording:    Recording{MaxMiB: 64},
		CRI:          CRI{Endpoint: os.Getenv(endpointVariable), Events: true},
		Kubelet:      Kubelet{ConfigFile: "/var/lib/kubelet/config.yaml"},
		Metrics:      Metrics{PodSeries: 250},
		Log:          Log{Level: "info"},
	}
}
