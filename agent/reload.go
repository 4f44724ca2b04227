package agent

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

// configEvery is how often the config file is looked at. The kubelet renews a mounted ConfigMap about once a minute.
const configEvery = 2 * time.Second

// partKeys are the settings that whole parts of the agent are made with: see ConfigChanged.
var partKeys = []string{"sampling", "recording", "cri", "metrics"}

// ConfigChanged is the error of Run when the config file says something that parts of the agent have to be made anew for:
// the caller makes another agent with this configuration. It comes when the node is calm and nothing is under way.
type ConfigChanged struct {
	Config Config
	Keys   []string
}

func (e *ConfigChanged) Error() string {
	return "the agent has to be made anew for changed settings: " + strings.Join(e.Keys, ", ")
}

// configKeys are the keys of the file whose values differ.
func configKeys(a, b *Config) (out []string) {
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			out = append(out, x.Type().Field(i).Tag.Get("yaml"))
		}
	}
	return out
}

// keepParts takes over from old what only a new agent can follow, and returns the keys in which that differed.
func (c *Config) keepParts(old *Config) (keys []string) {
	for _, key := range configKeys(old, c) {
		if slices.Contains(partKeys, key) {
			keys = append(keys, key)
		}
	}
	c.Sampling, c.Recording, c.CRI, c.Metrics = old.Sampling, old.Recording, old.CRI, old.Metrics
	return keys
}

// watchConfig looks at the config file until ctx ends. What it says goes to the loop; what is wrong in it is reported once,
// and nothing of it is taken.
func (a *Agent) watchConfig(ctx context.Context) error {
	tick := time.NewTicker(a.lookEvery)
	defer tick.Stop()
	seen := ""  // the newest text; "" when it could not be read
	unread := 0 // looks in a row that could not read it
	for first := true; ; first = false {
		if a.cluster != nil {
			a.cluster.client.PauseFor(pausedBeside(a.opts.ConfigFile))
		}
		text, err := readConfigText(a.opts.ConfigFile)
		switch {
		case err != nil:
			if unread++; unread == 2 { // it may just be replaced at the first
				seen = ""
				a.refuseConfig(err)
			}
		case string(text) != seen || unread >= 2 || first:
			seen = string(text)
			next, err := ParseConfig(text)
			if err != nil {
				a.refuseConfig(fmt.Errorf("config %s: %w", a.opts.ConfigFile, err))
				break
			}
			select {
			case a.configs <- next:
			case <-ctx.Done():
			}
		}
		if err == nil {
			unread = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// refuseConfig says that the file cannot be followed.
func (a *Agent) refuseConfig(err error) {
	text := oneLine(err.Error())
	a.log.Error("config refused: the settings in force stay", messageConfig, "error", text)
	a.sources.set("config", status.Degraded, "the file is refused, the settings in force stay: "+text)
	a.metrics.Config(metrics.ConfigRefused)
	a.configEvent(true, "SpillwayConfigRefused", "The settings in force stay: "+text)
}

// oneLine joins the lines of an error that has several.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

func (a *Agent) configEvent(warning bool, reason, message string) {
	a.nodeEvent(kube.Event{Warning: warning, Reason: reason, Action: "Configuring", Message: message, At: time.Now()})
}

// configure applies what the file says now, but for what only a new agent can follow: that waits for a calm moment.
func (l *loop) configure(now time.Time, next Config) {
	a := l.a
	if a.standalone {
		next.Mode = Standalone
	}
	live := next
	parts := live.keepParts(&a.cfg)
	keys := configKeys(&a.cfg, &live)
	l.pending = nil
	detail := a.opts.ConfigFile
	if len(parts) > 0 {
		l.pending = &ConfigChanged{Config: next, Keys: parts}
		detail += "; at the next calm moment the agent is made anew for " + strings.Join(parts, ", ")
	}
	a.sources.set("config", status.OK, detail)
	a.metrics.ConfigInForce(true)
	if len(keys) == 0 && len(parts) == 0 {
		return // as it is in force: at the start, or after a refusal that was mended
	}
	if live.Mode != a.cfg.Mode {
		l.endOnce(now, status.OnceStopped, "the mode was changed: the run was begun for the other one")
		select { // only the newest counts
		case <-a.modes:
		default:
		}
		a.modes <- live.Mode
	}
	a.cfg = live
	a.current.Store(&live)
	a.rules, _ = live.policy() // ParseConfig has checked it
	l.judge.Configure(a.judgeConfig())
	l.rankedAt, l.decidedAt, l.published = time.Time{}, time.Time{}, time.Time{}
	if a.evicts != nil {
		if err := a.evicts.Configure(now, live.limits()); err != nil { // cannot happen: ParseConfig has checked it
			a.log.Error("limits of evictions stay", "error", err)
		}
		a.reclaims.SetDryRun(live.Mode != Enforce)
		a.brakes.SetOff(a.brakeOff())
		a.cluster.settings.Store(&clusterSettings{kubelet: live.Kubelet, excluded: live.ExcludedNodes})
		a.renewRecording()
		a.nameReclaim()
	}
	if a.opts.Level != nil {
		a.opts.Level.Set(live.Log.Level.level())
	}
	a.metrics.Config(metrics.ConfigApplied)
	changed := slices.Concat(keys, parts)
	a.log.Warn("config changed", messageConfig, "keys", changed, "mode", string(live.Mode), "later", parts)
	a.configEvent(false, "SpillwayConfigChanged", "Changed settings: "+strings.Join(changed, ", "))
}

// reconfigured returns the change that another agent is to be made for, nil while there is none or something is under way.
func (l *loop) reconfigured() error {
	if l.pending == nil || l.verdict.Level > pressure.Calm || l.a.onces.Going() || l.a.evicts != nil && l.a.evicts.InFlight() > 0 {
		return nil
	}
	return l.pending
}
