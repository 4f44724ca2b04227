// Command spillway is the agent and its client: flags and subcommands only.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line. Exit codes: 0 success, 1 failure, 2 wrong usage; a command may have more.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "spillway",
		Short: "Sees memory running out on a Kubernetes node and moves the right pod away before the kubelet or the kernel picks one",
		Long: `Spillway runs on every node. It reads the kubelet's own memory figures from the kernel, says how long they will
last and whose growth it is, and evicts the pod that helps most through the Eviction API while there is still time
for a graceful exit.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	usage := true // until a command begins: its flags and arguments are right then
	root.PersistentPreRun = func(*cobra.Command, []string) { usage = false }
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w (see '%s --help')", err, c.CommandPath())
	})
	root.AddCommand(agentCommand(stderr), statusCommand(stdout), explainCommand(stdout), eventsCommand(stdout, stderr), onceCommand(stdout), preflightCommand(stdout, stderr), topCommand(stdout), recordingCommand(stdout), replayCommand(stdout), versionCommand(stdout))
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "spillway:", err)
		if usage {
			return 2
		}
		if own := new(exitError); errors.As(err, &own) {
			return own.code
		}
		return 1
	}
	return 0
}

func versionCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, "spillway", version)
			return err
		},
	}
}
