package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"spillway/agent/status"
)

func statusCommand(stdout io.Writer) *cobra.Command {
	output := document("table")
	var socket string
	var samples bool
	var pods int
	var q status.SampleQuery
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent on this node sees and does",
		Example: `  spillway status
  spillway status -o json
  spillway status --samples --resolution minute --pod shop/cart-5fc8ff689d-lp4g5
  ` + onNode("", "status"),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			if pods < 0 {
				return fmt.Errorf("--pods %d: want 0 or more", pods)
			}
			if !samples && q != (status.SampleQuery{Resolution: status.Fast}) {
				return errors.New("--resolution and --pod choose samples: give --samples too")
			}
			if samples {
				w, err := status.GetSamples(ctx, socket, q)
				if err != nil {
					return err
				}
				if output != "table" {
					return output.write(stdout, w)
				}
				return status.WriteSamples(stdout, w)
			}
			s, err := status.Get(ctx, socket)
			if err != nil {
				return err
			}
			if output != "table" {
				return output.write(stdout, s)
			}
			return status.WriteTable(stdout, s, pods)
		},
	}
	c.Flags().VarP(&output, "output", "o", "table, json or yaml")
	c.Flags().IntVar(&pods, "pods", 10, "at most so many pods in the table, by rank; 0: all")
	c.Flags().BoolVar(&samples, "samples", false, "show readings of the node instead, oldest first")
	c.Flags().StringVar(&q.Resolution, "resolution", status.Fast, "of the samples: fast (12 s), second (15 min; of a pod 2 min) or minute (24 h)")
	c.Flags().StringVar(&q.Pod, "pod", "", "samples of this pod of the node, NAMESPACE/NAME")
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

// document is how a command prints one thing.
type document string

func (d *document) String() string { return string(*d) }
func (d *document) Type() string   { return "format" }

// Set accepts what can be printed.
func (d *document) Set(v string) error {
	if v != "table" && v != "json" && v != "yaml" {
		return errors.New("want table, json or yaml")
	}
	*d = document(v)
	return nil
}

// write prints v with the names that its fields have in JSON.
func (d *document) write(w io.Writer, v any) error {
	if *d == "json" {
		return writeJSON(w, v)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var plain any // JSON is YAML
	if err := yaml.Unmarshal(text, &plain); err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	return errors.Join(enc.Encode(plain), enc.Close())
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
