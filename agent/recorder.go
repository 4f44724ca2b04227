package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"spillway/agent/config"
	"spillway/agent/judge"
	"spillway/agent/kube"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/recording"
	"spillway/agent/status"
)

// recordingFile is the recording's newest part, in Options.StateDir.
const recordingFile = "recording.gz"

// judgeConfig is what the pure core needs of the configuration.
func (a *Agent) judgeConfig() judge.Config {
	c := a.cfg.Judge(a.rules)
	c.SelfUID = a.opts.SelfUID
	return c
}

// openRecorder makes the writer of what the core sees and says. An agent that cannot record still works.
func (a *Agent) openRecorder() {
	if a.standalone || a.cfg.Recording.MaxMiB == 0 {
		a.sources.Set("recording", status.Off, "not used")
		return
	}
	header, err := a.recordingHeader()
	if err == nil {
		a.recorder, err = recording.NewWriter(recording.Options{
			Path: filepath.Join(a.opts.StateDir, recordingFile), MaxBytes: int64(a.cfg.Recording.MaxMiB) << 20, Header: header,
		})
	}
	if err != nil {
		a.sources.Set("recording", status.Degraded, err.Error())
	}
}

func (a *Agent) recordingHeader() (recording.Header, error) {
	text, err := a.cfg.Text()
	return recording.Header{Agent: a.opts.Version, Node: a.opts.NodeName, Mode: string(a.cfg.Mode), SelfUID: a.opts.SelfUID, Config: text}, err
}

// renewRecording ends an episode that was recorded with other settings: the next look begins one that names those in force.
func (a *Agent) renewRecording() {
	if a.recorder == nil {
		return
	}
	a.recorder.End("the configuration changed")
	header, err := a.recordingHeader()
	if err != nil { // cannot happen: what was read as YAML can be written as YAML
		a.log.Error("recording keeps the configuration from before", "error", err)
		return
	}
	a.recorder.SetHeader(header)
}

// observeRecorder names the state of the recording.
func (a *Agent) observeRecorder() {
	if a.recorder == nil {
		return
	}
	switch s := a.recorder.Stats(); {
	case s.Fault != "":
		a.sources.Set("recording", status.Degraded, s.Fault)
	case s.Dropped > 0:
		a.sources.Set("recording", status.Degraded, fmt.Sprintf("%d times the disk did not keep up, and the recording broke off", s.Dropped))
	default:
		a.sources.Set("recording", status.OK, filepath.Join(a.opts.StateDir, recordingFile))
	}
}

// recordLook records from alert to calm: what leads to an alert is in the windows that an episode begins with.
func (l *loop) recordLook(now time.Time, in *judge.Look) {
	w := l.a.recorder
	if w == nil {
		return
	}
	at := now.UTC().Round(0)
	switch tense := l.verdict.Level >= pressure.Alert; {
	case tense && !w.Open():
		w.Begin(at, l.judge.State())
	case tense:
		w.Look(at, in, &l.verdict)
	case w.Recording():
		w.Look(at, in, &l.verdict)
		w.End("the level is " + l.verdict.Level.String())
	}
}

func (l *loop) recordRead(p *judge.Pods, ranking []policy.Candidate) {
	if w := l.a.recorder; w != nil {
		w.Read(p, ranking)
	}
}

func (l *loop) recordDecision(p *judge.Pods, d *policy.Decision, held, id string) {
	if w := l.a.recorder; w != nil {
		w.Decide(p, d, held, id)
	}
}

func (l *loop) recordPlan(p *judge.Pods, c *policy.CachePlan) {
	if w := l.a.recorder; w != nil {
		w.Plan(p, c)
	}
}

func (l *loop) recordEvent(now time.Time, kind string, what any) {
	if w := l.a.recorder; w != nil {
		w.Event(now.UTC().Round(0), kind, what)
	}
}

// copyRecording writes both parts, the older one first. Any goroutine may.
func (a *Agent) copyRecording(out io.Writer) error {
	path := filepath.Join(a.opts.StateDir, recordingFile)
	found := false
	for _, name := range []string{path + recording.OldSuffix, path} {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read recording: %w", err)
		}
		found = true
		_, err = io.Copy(out, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("read recording: %w", err)
		}
	}
	if !found {
		return errors.New("nothing was recorded yet: a recording begins with the first alert")
	}
	return nil
}

// Replay plays a recording, with the configuration in it and, when other is not nil, with another one too. An error
// comes with what could be read before it.
func Replay(data []byte, other *config.Config) (*recording.Report, error) {
	with := func(h recording.Header, c *config.Config) (judge.Config, error) {
		rules, err := c.Policy(kube.ParseSelector)
		if err != nil {
			return judge.Config{}, fmt.Errorf("config: %w", err)
		}
		out := c.Judge(rules)
		out.SelfUID = h.SelfUID
		return out, nil
	}
	var second recording.Configure
	if other != nil {
		second = func(h recording.Header) (judge.Config, error) { return with(h, other) }
	}
	return recording.Replay(data, func(h recording.Header) (judge.Config, error) {
		c, err := config.Parse([]byte(h.Config), kube.ParseSelector)
		if err != nil {
			return judge.Config{}, err
		}
		return with(h, &c)
	}, second)
}
