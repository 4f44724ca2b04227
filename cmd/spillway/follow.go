package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"spillway/agent/status"
)

const (
	answerTime = 10 * time.Second // for an answer that waits for nothing
	followWait = 30 * time.Second // of one question, for an event
	// An agent that is away is asked again after awayFirst, doubling up to awayMost.
	awayFirst, awayMost = time.Second, 10 * time.Second
	// followPace is how soon the next question follows an answer without events: an agent that ends gives those at once.
	followPace = time.Second
)

// followEvents shows what there is and what comes, until ctx ends, which is no error. An agent that goes away after its first
// answer is waited for. Each answer says where the next one goes on, by IDs that the ledger never gives twice: nothing is shown
// twice, and nothing is left out that the ledger has.
func followEvents(ctx context.Context, socket string, number int, stdout, stderr io.Writer, output format) error {
	q := status.EventQuery{Limit: number}
	head, away := true, time.Duration(0)
	for {
		asked := time.Now()
		within, cancel := context.WithTimeout(ctx, q.Wait+answerTime)
		l, err := status.GetEvents(within, socket, q)
		cancel()
		if ctx.Err() != nil {
			return nil // Ctrl-C is how it ends
		}
		var pause time.Duration
		switch {
		case err != nil && (head || status.Refused(err)):
			return err
		case err != nil:
			if away == 0 {
				fmt.Fprintf(stderr, "spillway: the agent is away: %v; asking again\n", err)
			}
			away = longer(away)
			pause, q.Wait = away, 0 // the first answer says at once that it is back
		default:
			if away > 0 {
				fmt.Fprintln(stderr, "spillway: the agent is back")
			}
			if err := showEvents(&l, stdout, output, head); err != nil {
				return err
			}
			if took := time.Since(asked); len(l.Events) == 0 && !head && away == 0 && took < followPace {
				pause = followPace - took
			}
			head, away = false, 0
			q = status.EventQuery{Since: l.Next, Limit: status.MaxEvents, Wait: followWait}
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// longer returns the pause after one that was in vain, or the first.
func longer(pause time.Duration) time.Duration { return min(max(awayFirst, 2*pause), awayMost) }

// showEvents prints one answer, JSON as a line for each event.
func showEvents(l *status.EventList, stdout io.Writer, output format, head bool) error {
	if output != "json" {
		return status.WriteEvents(stdout, l.Events, time.Local, head)
	}
	enc := json.NewEncoder(stdout)
	for i := range l.Events {
		if err := enc.Encode(l.Events[i]); err != nil {
			return fmt.Errorf("write events: %w", err)
		}
	}
	return nil
}

// sleep waits; false: ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
