package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"spillway/agent/status"
)

func statusCommand(stdout io.Writer) *cobra.Command {
	var socket, output string
	var samples bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent on this node sees and does",
		Example: `  spillway status
  spillway status -o json
  kubectl -n spillway-system exec ds/spillway -- /spillway status`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("--output %q, want table or json", output)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			if samples {
				w, err := status.GetSamples(ctx, socket)
				if err != nil {
					return err
				}
				if output == "json" {
					return writeJSON(stdout, w)
				}
				return status.WriteSamples(stdout, w)
			}
			s, err := status.Get(ctx, socket)
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(stdout, s)
			}
			return status.WriteTable(stdout, s)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	c.Flags().BoolVar(&samples, "samples", false, "show the newest readings of the node instead, oldest first")
	c.Flags().StringVar(&socket, "socket", status.DefaultSocket, "the agent's unix socket")
	return c
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
