package agent

import (
	"context"
	"slices"
	"strings"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/pressure"
	"spillway/agent/report"
	"spillway/agent/status"
)

// ConfigChanged is the error of Run when the config file says something that parts of the agent have to be made anew for:
// the caller makes another agent with this configuration. It comes when the node is calm and nothing is under way.
type ConfigChanged struct {
	Config config.Config
	Keys   []string
}

func (e *ConfigChanged) Error() string {
	return "the agent has to be made anew for changed settings: " + strings.Join(e.Keys, ", ")
}

// watchConfig looks at the config file until ctx ends. What it says goes to the loop; what is wrong in it is reported once,
// and nothing of it is taken.
func (a *Agent) watchConfig(ctx context.Context) error {
	f, err := config.NewFollower(config.FollowOptions{
		Path: a.opts.ConfigFile, Every: a.lookEvery, Selector: kube.ParseSelector, Changes: a.configs, Refuse: a.refuseConfig,
		Look: func() {
			if a.cluster != nil {
				a.kube.PauseFor(config.PausedBeside(a.opts.ConfigFile, kube.PauseKey))
			}
		},
	})
	if err != nil {
		return err
	}
	return f.Run(ctx)
}

// evictLimits are what evictions need of the configuration.
func evictLimits(c *config.Config) evict.Limits {
	return evict.Limits{DryRun: c.Mode != config.Enforce, Cooldown: c.Cooldown, RoundLimit: c.RoundLimit, KeepGrace: !c.ShortenGrace, HourlyCap: c.HourlyCap,
		Shares: evict.Shares{Hour: c.Budget.PercentPerHour, Day: c.Budget.PercentPerDay, ReliefHour: c.Budget.ReliefPercentPerHour, ReliefDay: c.Budget.ReliefPercentPerDay}}
}

// refuseConfig says that the file cannot be followed.
func (a *Agent) refuseConfig(err error) {
	text := oneLine(err.Error())
	a.sources.Set("config", status.Degraded, "the file is refused, the settings in force stay: "+text)
	a.tell(time.Now(), report.ConfigRefused{At: time.Now(), Why: text})
}

// oneLine joins the lines of an error that has several.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// configure applies what the file says now, but for what only a new agent can follow: that waits for a calm moment.
func (l *loop) configure(now time.Time, next config.Config) {
	a := l.a
	if a.standalone {
		next.Mode = config.Standalone
	}
	live := next
	parts := live.KeepParts(&a.cfg)
	keys := config.Changed(&a.cfg, &live)
	l.pending = nil
	detail := a.opts.ConfigFile
	if len(parts) > 0 {
		l.pending = &ConfigChanged{Config: next, Keys: parts}
		detail += "; at the next calm moment the agent is made anew for " + strings.Join(parts, ", ")
	}
	a.sources.Set("config", status.OK, detail)
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
	a.rules, _ = live.Policy(kube.ParseSelector) // config.Parse has checked it
	l.judge.Configure(a.judgeConfig())
	l.rankedAt, l.decidedAt, l.published = time.Time{}, time.Time{}, time.Time{}
	if a.evicts != nil {
		if err := a.evicts.Configure(now, evictLimits(&live)); err != nil { // cannot happen: config.Parse has checked it
			a.log.Error("limits of evictions stay", "error", err)
		}
		a.reclaims.SetDryRun(live.Mode != config.Enforce)
		a.brakes.SetOff(a.brakeOff())
		a.cluster.Configure(clusterSettings(&live))
		a.renewRecording()
		a.nameReclaim()
	}
	if a.opts.Level != nil {
		a.opts.Level.Set(live.Log.Level.Level())
	}
	changed := slices.Concat(keys, parts)
	a.tell(now, report.ConfigChanged{At: now, Mode: string(live.Mode), Keys: changed, Later: parts})
}

// reconfigured returns the change that another agent is to be made for, nil while there is none or something is under way.
func (l *loop) reconfigured() error {
	if l.pending == nil || l.verdict.Level > pressure.Calm || l.a.onces.Going() || l.a.evicts != nil && l.a.evicts.InFlight() > 0 {
		return nil
	}
	return l.pending
}
