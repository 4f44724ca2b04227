package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway/agent/status"
)

// Exit codes of once besides success, failure and wrong usage.
const (
	exitNobody  = 3
	exitStopped = 4
)

// exitError is a failure with an exit code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func onceCommand(stdout io.Writer) *cobra.Command {
	output := format("table")
	var socket string
	var target percent
	var dryRun bool
	c := &cobra.Command{
		Use:   "once --target-usage PERCENT",
		Short: "Evict pods of this node, one after the other, until it uses no more than a target: for a maintenance window",
		Long: `Evict pods of this node, one after the other, until it uses no more than a target, for a maintenance window. The agent
does it and hands out its progress; this command only asks. There is one run at a time.

What holds for every eviction holds here: protections, PodDisruptionBudgets, autoscalers, room on other nodes, the pause
switch, cooldown and hourly cap, one pod at a time with its own grace period. While the level is evict or critical the
node's own decisions go first. Only urgency is not asked for: of those that may go it is the best ranked that is enough
alone, else one of the fewest that are enough together, else the best ranked. No pod is asked to go twice in a run.

The run ends when the target is reached, when nobody may go for 15 s, when everything was held for 5 min, or with Ctrl-C:
a pod that is on its way out then goes on, and no other follows.

With --dry-run, and always in observe mode, the agent says who would go in which order, each with the release that is
expected of it, and asks for no eviction.

Exit codes: 0 the target is reached (in a dry run: would be), 1 a failure, or no agent on the socket, or it stopped,
2 wrong usage, 3 nothing more may be evicted, 4 interrupted.`,
		Example: `  spillway once --target-usage 80 --dry-run
  spillway once --target-usage 80
  ` + onNode("-it", "once --target-usage 80"),
		Args: func(c *cobra.Command, args []string) error {
			if err := cobra.NoArgs(c, args); err != nil {
				return err
			}
			if !c.Flags().Changed("target-usage") {
				return errors.New("--target-usage is missing: give a percentage of the node's allocatable memory, 1 to 99")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := status.OnceRequest{TargetUsagePercent: float64(target), DryRun: dryRun}
			return once(cmd.Context(), socket, req, stdout, output)
		},
	}
	c.Flags().Var(&target, "target-usage", "until the node uses no more than this percentage of its allocatable memory, 1 to 99")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say who would go, and evict nobody")
	c.Flags().VarP(&output, "output", "o", "table or json (a line for each event)")
	c.Flags().StringVar(&socket, "socket", status.DefaultSocket, "the agent's unix socket")
	return c
}

// once prints what the agent says until the end. An interrupted run ends with a summary of what was seen.
func once(ctx context.Context, socket string, req status.OnceRequest, stdout io.Writer, output format) error {
	var tally status.OnceTally
	var last status.OnceEvent
	show := func(e status.OnceEvent) error {
		tally.Take(e.Eviction)
		last = e
		if output == "json" {
			return json.NewEncoder(stdout).Encode(e)
		}
		if err := status.WriteOnceEvent(stdout, e); err != nil || e.Summary == nil {
			return err
		}
		return status.WriteOnceSummary(stdout, e.Summary)
	}
	err := status.Once(ctx, socket, req, show)
	switch {
	case last.Summary != nil && err == nil:
		return ending(last)
	case ctx.Err() != nil:
		end := last
		end.At, end.State, end.Text, end.Eviction = time.Now(), status.OnceEnded, "interrupted: no other pod is evicted", nil
		end.TargetPercent = req.TargetUsagePercent
		end.Summary = tally.Summary(status.OnceStopped, req.DryRun)
		if err := show(end); err != nil {
			return err
		}
		return ending(end)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: the socket belongs to root", err)
	}
	return err
}

// ending turns the last line into the command's result.
func ending(e status.OnceEvent) error {
	switch e.Summary.Reason {
	case status.OnceReached:
		return nil
	case status.OnceNobody, status.OnceTooLong:
		return &exitError{exitNobody, fmt.Errorf("the target of %g %% is not reached: %s", e.TargetPercent, e.Text)}
	case status.OnceStopped:
		return &exitError{exitStopped, fmt.Errorf("the target of %g %% is not reached: %s", e.TargetPercent, e.Text)}
	}
	return fmt.Errorf("the target of %g %% is not reached: %s", e.TargetPercent, e.Text)
}

// percent is a percentage from 1 to 99, with or without its sign.
type percent float64

func (p *percent) String() string {
	if *p == 0 {
		return ""
	}
	return strconv.FormatFloat(float64(*p), 'g', -1, 64)
}

func (p *percent) Type() string { return "percent" }

// Set accepts what a run can have as its target.
func (p *percent) Set(v string) error {
	f, err := strconv.ParseFloat(strings.TrimSuffix(v, "%"), 64)
	if err != nil || (status.OnceRequest{TargetUsagePercent: f}).Check() != nil {
		return errors.New("want 1 to 99")
	}
	*p = percent(f)
	return nil
}
