package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"spillway/agent/status"
)

// build is what is known of a binary, and of the agent that answers.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"` // as Go saw it; empty: built outside a repository
	Modified bool   `json:"modified,omitempty"`
	Built    string `json:"commitTime,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Agent    string `json:"agent,omitempty"` // version of the agent on the socket; empty: none answers
}

func builtFrom() build {
	b := build{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.time":
				b.Built = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	return b
}

func versionCommand(stdout io.Writer) *cobra.Command {
	output := document("table")
	var socket string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version, its commit, Go and platform, and the version of the agent on this node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := builtFrom()
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
			defer cancel()
			if s, err := status.Get(ctx, socket); err == nil { // without an agent it is the version of the program alone
				b.Agent = s.Version
			}
			if output != "table" {
				return output.write(stdout, b)
			}
			commit, agent := "unknown", "none on "+socket
			if b.Commit != "" {
				commit = b.Commit
			}
			if b.Modified {
				commit += " (modified)"
			}
			if b.Agent != "" {
				agent = status.Clean(b.Agent)
			}
			_, err := fmt.Fprintf(stdout, "spillway %s\ncommit   %s\ngo       %s\nplatform %s\nagent    %s\n", b.Version, commit, b.Go, b.Platform, agent)
			return err
		},
	}
	c.Flags().VarP(&output, "output", "o", "table, json or yaml")
	c.Flags().StringVar(&socket, "socket", status.DefaultSocket, "the agent's unix socket")
	return c
}
