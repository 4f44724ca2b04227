package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"spillway/agent/status"
)

func statusCommand(stdout io.Writer) *cobra.Command {
	output := format("table")
	var socket string
	var samples bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent on this node sees and does",
		Example: `  spillway status
  spillway status -o json
  kubectl -n spillway-system exec ds/spillway -- /spillway status`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
	c.Flags().VarP(&output, "output", "o", "table or json")
	c.Flags().BoolVar(&samples, "samples", false, "show the newest readings of the node instead, oldest first")
	c.Flags().StringVar(&socket, "socket", status.DefaultSocket, "the agent's unix socket")
	return c
}

// format is how a command prints.
type format string

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }

// Set accepts what can be printed.
func (f *format) Set(v string) error {
	if v != "table" && v != "json" {
		return errors.New("want table or json")
	}
	*f = format(v)
	return nil
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
