package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway/agent/incident"
	"spillway/agent/status"
)

func eventsCommand(stdout, stderr io.Writer) *cobra.Command {
	output := format("table")
	var socket string
	var follow bool
	number := status.DefaultEvents
	c := &cobra.Command{
		Use:   "events",
		Short: "List and follow what happened on this node: incidents, OOM kills, evictions by Spillway",
		Long: `List what happened on this node, oldest first: OOM kills, evictions that Spillway asked for, and incidents. An incident is
what the agent recorded around an OOM kill, an eviction by the kubelet or by Spillway, or a critical shortage: two minutes
before it and half a minute or more after it. What belongs together is one incident. "events show ID" tells its story.

The last line is the score of observe mode: what became of the evictions that Spillway did not ask for. After a right one the
threshold was crossed, or the kubelet or the kernel acted; an early one ended by itself: the pod fell or stopped growing.

Events survive a restart: OOM kills and incidents of up to 30 days are kept. -f survives a restart of the agent: it says on
stderr that the agent is away and that it is back, and goes on after the last event that it showed. Times are those of the
local time zone.`,
		Example: `  spillway events
  spillway events -n 100 -o json
  spillway events -f
  spillway events show inc-12
  ` + onNode("", "events"),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if number < 1 || number > status.MaxEvents {
				return fmt.Errorf("-n %d: want 1 to %d", number, status.MaxEvents)
			}
			if follow {
				return followEvents(cmd.Context(), socket, number, stdout, stderr, output)
			}
			return events(cmd.Context(), socket, number, stdout, output)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes, until Ctrl-C")
	c.Flags().IntVarP(&number, "number", "n", number, "of the newest events that are shown")
	c.Flags().VarP(&output, "output", "o", "table or json (with -f a line for each event)")
	c.PersistentFlags().StringVar(&socket, "socket", status.DefaultSocket, "the agent's unix socket")
	c.AddCommand(eventCommand(stdout, &socket))
	return c
}

// events lists what there is.
func events(ctx context.Context, socket string, number int, stdout io.Writer, output format) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	l, err := status.GetEvents(ctx, socket, status.EventQuery{Limit: number})
	switch {
	case err != nil:
		return err
	case output == "json":
		return writeJSON(stdout, &l)
	case len(l.Events) == 0:
		_, err = fmt.Fprintln(stdout, "nothing was recorded yet")
	default:
		err = status.WriteEvents(stdout, l.Events, time.Local, true)
	}
	if err == nil && l.Observe != nil {
		if _, err = fmt.Fprintf(stdout, "\nobserve: %s\n", l.Observe.Text()); err != nil {
			err = fmt.Errorf("write events: %w", err)
		}
	}
	return err
}

func eventCommand(stdout io.Writer, socket *string) *cobra.Command {
	output := storyFormat("text")
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Tell the story of one event",
		Long: `Tell the story of one event. Of an incident it says what happened, limit, use and growth of the pod, how the node was and
its neighbours, what Spillway and the kubelet did, and which containers ended and why. An OOM kill or an eviction is shown
with the incident that it is part of.`,
		Example: `  spillway events show inc-12
  spillway events show oom-40 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			d, err := status.GetEvent(ctx, *socket, args[0])
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(stdout, d)
			}
			return tell(stdout, &d, time.Local)
		},
	}
	c.Flags().VarP(&output, "output", "o", "text or json")
	return c
}

// tell prints an event for people.
func tell(w io.Writer, d *status.EventDetail, zone *time.Location) error {
	var b strings.Builder
	if d.Event.Type != status.EventIncident {
		if err := status.WriteEvents(&b, []status.Event{d.Event}, zone, true); err != nil {
			return err
		}
		if len(d.Incident) == 0 {
			b.WriteString("\nit is part of no incident that is kept\n")
		} else {
			fmt.Fprintf(&b, "\nit is part of %s:\n\n", status.Clean(d.Event.Incident))
		}
	}
	if len(d.Incident) > 0 {
		var i incident.Incident
		if err := json.Unmarshal(d.Incident, &i); err != nil {
			return fmt.Errorf("read incident: %w", err)
		}
		if i.Version != incident.Version {
			return fmt.Errorf("read incident: version %d, this client knows %d: use -o json", i.Version, incident.Version)
		}
		b.WriteString(incident.Story(&i, zone))
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}

// storyFormat is how a story is printed.
type storyFormat string

func (f *storyFormat) String() string { return string(*f) }
func (f *storyFormat) Type() string   { return "format" }

// Set accepts what can be printed.
func (f *storyFormat) Set(v string) error {
	if v != "text" && v != "json" {
		return errors.New("want text or json")
	}
	*f = storyFormat(v)
	return nil
}
