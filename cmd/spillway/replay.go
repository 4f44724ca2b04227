package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"spillway/agent"
	"spillway/agent/config"
	"spillway/agent/kube"
	"spillway/agent/recording"
	"spillway/agent/status"
)

func recordingCommand(stdout io.Writer) *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "recording",
		Short: "Write what the agent has recorded to standard output",
		Long: "Write what the agent has recorded to standard output, for 'spillway replay': samples, pods, decisions and events from each\n" +
			"alert to the calm after it, as far back as the files reach (config key recording.maxMiB).",
		Example: `  spillway recording >node1.gz
  ` + onNode("", "recording >node1.gz"),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f, ok := stdout.(*os.File); ok {
				if fi, err := f.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull {
					return errors.New("a recording is not for a terminal: redirect it into a file")
				}
			}
			return status.GetRecording(cmd.Context(), socket, stdout)
		},
	}
	c.Flags().StringVar(&socket, "socket", status.DefaultSocket, "the agent's unix socket")
	return c
}

// errDiffers is the end of a replay that did not give the recorded answers.
var errDiffers = errors.New("the replay differs from the recording: was it made by another version of Spillway?")

func replayCommand(stdout io.Writer) *cobra.Command {
	output := document("table")
	var second string
	c := &cobra.Command{
		Use:   "replay FILE",
		Short: "Play a recording again, also with another configuration",
		Long: "Play a recording again through the code that decided then: every verdict, ranking and decision must come out the same,\n" +
			"bit for bit. With --config the other configuration sees the same node, and the table shows where it would have\n" +
			"come to another level or decision. What its victims would have changed on the node is not known: behind its\n" +
			"first other decision the recorded world goes on.\n\n" +
			"Each would-be eviction is judged by what the recording shows: the threshold was crossed, the kubelet or the kernel\n" +
			"acted, or the growth ended by itself. From the first pod that Spillway evicted on, no would-be eviction is judged.\n\n" +
			"Exit code 1: a file that cannot be read, or answers that differ from the recorded ones.",
		Example: `  spillway replay node1.gz
  spillway replay node1.gz --config other.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("read recording: %w", err)
			}
			var other *config.Config
			if second != "" {
				c, err := config.Load(second, kube.ParseSelector)
				if err != nil {
					return err
				}
				other = &c
			}
			report, err := agent.Replay(data, other)
			if err != nil {
				err = fmt.Errorf("replay %s: %w", args[0], err)
			}
			if report != nil && len(report.Episodes) > 0 {
				write := recording.WriteReport
				if output != "table" {
					write = func(w io.Writer, r *recording.Report) error { return output.write(w, r) }
				}
				if werr := write(stdout, report); werr != nil {
					return errors.Join(err, werr)
				}
				if err == nil && !report.Identical() {
					err = errDiffers
				}
			}
			return err
		},
	}
	c.Flags().StringVar(&second, "config", "", "a second configuration to compare with")
	c.Flags().VarP(&output, "output", "o", "table, json or yaml")
	return c
}
