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

// onNode is the command line, with the flags for kubectl exec, that runs a command in the agent's pod of a node.
func onNode(flags, command string) string {
	if flags != "" {
		flags += " "
	}
	return "kubectl -n spillway-system exec " + flags + "$(kubectl -n spillway-system get pod -o name -l app.kubernetes.io/name=spillway --field-selector spec.nodeName=NODE) -- /spillway " + command
}

// run executes one command line. The exit codes are in the command's help.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "spillway",
		Short: "Sees memory running out on a Kubernetes node and moves the right pod away before the kubelet or the kernel picks one",
		Long: `Spillway runs on every node. It reads the kubelet's own memory figures from the kernel, says how long they will
last and whose growth it is, and evicts the pod that helps most through the Eviction API while there is still time
for a graceful exit.

A command asks the agent of one node, through its socket. From outside, run it in the agent's pod of that node:
  ` + onNode("", "status") + `

Times are RFC 3339 in the local time zone (in the agent's pod: UTC). Exit codes:
  0  success
  1  a failure, or no agent answers on the socket
  2  wrong usage: an unknown command, flag or value
  3  once: no more pods may be evicted, and the target is not reached
  4  once: interrupted
  5  explain: the pod is not on this node`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("spillway {{.Version}}\n")
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
