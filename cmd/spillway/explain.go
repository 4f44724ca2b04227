package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway/agent/status"
)

// exitNoPod is explain's exit code for a pod that is not on this node.
const exitNoPod = 5

func explainCommand(stdout io.Writer) *cobra.Command {
	output := document("table")
	var socket string
	c := &cobra.Command{
		Use:   "explain NAMESPACE/POD",
		Short: "Say whether a pod of this node would be evicted now, and why",
		Long: "Say whether a pod of this node would be evicted now, and why: level and gates, what holds evictions back, protections,\n" +
			"and its score term by term. The agent decides by the same path as for an eviction, up to the call.\n\n" +
			"Exit codes: 0 explained, 1 a failure, or no agent on the socket, 2 wrong usage, 5 the pod is not on this node.",
		Example: `  spillway explain shop/cart-5fc8ff689d-lp4g5
  ` + onNode("", "explain shop/cart-5fc8ff689d-lp4g5 -o json"),
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if namespace, name, ok := strings.Cut(args[0], "/"); !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
				return fmt.Errorf("pod %q: want NAMESPACE/POD", args[0])
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			e, err := status.GetExplanation(ctx, socket, args[0])
			if status.NoPod(err) {
				return &exitError{exitNoPod, fmt.Errorf("%w (kubectl -n NAMESPACE get pod POD -o wide shows its node)", err)}
			}
			if err != nil {
				return err
			}
			if output != "table" {
				return output.write(stdout, e)
			}
			return status.WriteExplanation(stdout, e)
		},
	}
	c.Flags().VarP(&output, "output", "o", "table, json or yaml")
	c.Flags().StringVar(&socket, "socket", status.DefaultSocket, "the agent's unix socket")
	return c
}
