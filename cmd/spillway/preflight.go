package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"spillway/agent"
	"spillway/agent/status"
)

func preflightCommand(stdout, stderr io.Writer) *cobra.Command {
	var opts agent.Options
	var standalone, strict bool
	var socket string
	output := document("table")
	c := &cobra.Command{
		Use:   "preflight",
		Short: "Check everything that an agent needs on this node, and say what to do about what is missing",
		Long: `Check everything that an agent needs on this node: cgroups, the kernel's figures, BPF, the container runtime, the
API server and each right there, the kubelet's thresholds, the disk. It opens, asks and reads what the agent would, and
keeps nothing.

Without flags, the agent that runs on this node checks by its own. With some of the flags of 'spillway agent', or where
none runs, the command does it by itself.

ok: as it should be. degraded: the agent does without, and says what that means. failed: nobody is evicted.
Exit codes: 0 nothing failed, 1 something did, or with --strict is degraded, 2 wrong usage.`,
		Example: `  # as an agent of the DaemonSet finds it now
  ` + onNode("", "preflight") + `

  # on a node, before an agent is installed there
  spillway preflight --kubeconfig /etc/spillway/kubeconfig --node-name node1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			own := false
			agents := pflag.NewFlagSet("", pflag.ContinueOnError)
			agentFlags(agents, new(agent.Options), new(bool))
			agents.VisitAll(func(f *pflag.Flag) { own = own || cmd.Flags().Changed(f.Name) })
			var checks []status.Check
			var err error
			if !own {
				if checks, err = status.GetPreflight(cmd.Context(), socket); err != nil {
					fmt.Fprintf(stderr, "spillway: no agent checks for itself: %v\n", err)
					own = true
				}
			}
			if own {
				if err := readConfig(&opts, standalone); err != nil {
					return err
				}
				opts.Version = version
				if checks, err = agent.Preflight(cmd.Context(), opts); err != nil {
					return err
				}
			}
			if output != "table" {
				err = output.write(stdout, checks)
			} else {
				err = status.WriteChecks(stdout, checks)
			}
			if err != nil {
				return err
			}
			count := map[string]int{}
			for _, check := range checks {
				count[check.State]++
			}
			switch failed, degraded := count[status.Failed], count[status.Degraded]; {
			case failed > 0:
				return fmt.Errorf("preflight: %d checks failed", failed)
			case strict && degraded > 0:
				return fmt.Errorf("preflight: %d checks are degraded (--strict)", degraded)
			}
			return nil
		},
	}
	f := c.Flags()
	agentFlags(f, &opts, &standalone)
	f.StringVar(&socket, "socket", status.DefaultSocket, "the agent's unix socket")
	f.BoolVar(&strict, "strict", false, "exit with 1 also when a check is degraded")
	f.VarP(&output, "output", "o", "table, json or yaml")
	return c
}
