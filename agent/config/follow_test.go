package config

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestFollow: each text of the file is taken or refused once, and a file that cannot be read is refused at the second look.
func TestFollow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	const capOf, none = "hourlyCap: ", "there is no file"
	synctest.Test(t, func(t *testing.T) {
		changes := make(chan Config)
		var looks atomic.Int64
		refused := make(chan error, 8)
		f, err := NewFollower(FollowOptions{Path: file, Selector: selector, Changes: changes, Look: func() { looks.Add(1) }, Refuse: func(err error) { refused <- err }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		for i, step := range []struct {
			name, text string
			looks      int64
			taken      int      // hourlyCap of what is taken; 0: nothing is
			refused    []string // parts of the one refusal; none: nothing is refused
		}{
			{"the first text", capOf + "7", 1, 7, nil},
			{"the same text", capOf + "7", 3, 0, nil},
			{"another one", capOf + "8", 1, 8, nil},
			{"a wrong one", capOf + "4000", 3, 0, []string{file, "line 1: hourlyCap: 4000, want 1 to 100"}},
			{"the one before it", capOf + "8", 1, 8, nil},
			{"no file for one look", none, 1, 0, nil},
			{"the same text after it", capOf + "8", 2, 0, nil},
			{"no file", none, 4, 0, []string{"no such file"}},
			{"the same text again", capOf + "8", 1, 8, nil},
			{"no file once more", none, 2, 0, []string{"no such file"}},
			{"an empty one", "", 1, 10, nil},
		} {
			if step.text == none {
				err = os.Remove(file)
			} else {
				err = os.WriteFile(file, []byte(step.text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			looks.Store(0)
			if i == 0 {
				go func() { done <- f.Run(ctx) }()
			}
			taken := 0
			for range step.looks {
				if i > 0 {
					time.Sleep(lookEvery)
				}
				synctest.Wait()
				select {
				case c := <-changes:
					taken += c.HourlyCap
				default:
				}
				synctest.Wait()
			}
			if taken != step.taken {
				t.Errorf("%s: took hourlyCap %d, want %d", step.name, taken, step.taken)
			}
			if n := looks.Load(); n != step.looks {
				t.Errorf("%s: %d looks, want %d", step.name, n, step.looks)
			}
			var said []string
			for range len(refused) {
				said = append(said, (<-refused).Error())
			}
			if len(said) > 1 || (len(said) == 1) != (step.refused != nil) || slices.ContainsFunc(step.refused, func(part string) bool { return !strings.Contains(said[0], part) }) {
				t.Errorf("%s: refused %q, want one with %q", step.name, said, step.refused)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestFollowerOptions(t *testing.T) {
	good := FollowOptions{Path: "x", Selector: selector, Changes: make(chan Config), Refuse: func(error) {}}
	if _, err := NewFollower(good); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*FollowOptions){
		"no path":     func(o *FollowOptions) { o.Path = "" },
		"no selector": func(o *FollowOptions) { o.Selector = nil },
		"no changes":  func(o *FollowOptions) { o.Changes = nil },
		"no refuse":   func(o *FollowOptions) { o.Refuse = nil },
		"backwards":   func(o *FollowOptions) { o.Every = -1 },
	} {
		o := good
		spoil(&o)
		if _, err := NewFollower(o); err == nil || !strings.Contains(err.Error(), "follow config") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestChanged: every key of the file is either followed at once or named for another agent.
func TestChanged(t *testing.T) {
	a, b := Default(), Default()
	if keys := Changed(&a, &b); keys != nil {
		t.Fatalf("two equal ones differ in %v", keys)
	}
	b.Mode, b.Cooldown, b.Recording.MaxMiB, b.Sampling.Slowest, b.CRI.Endpoint, b.Metrics.Listen = Enforce, 1, 1, 1, "x", "y"
	next := b
	if keys := next.KeepParts(&a); !slices.Equal(keys, []string{"sampling", "recording", "cri", "metrics"}) {
		t.Errorf("parts %v", keys)
	}
	if keys := Changed(&a, &next); !slices.Equal(keys, []string{"mode", "cooldown"}) {
		t.Errorf("at once %v", keys)
	}
}

// TestPausedBeside: a pause that lies where it lay in earlier versions holds.
func TestPausedBeside(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	for _, config := range []string{"", file} {
		if why := PausedBeside(config, "pause"); why != "" {
			t.Errorf("config %q without the key: paused, %s", config, why)
		}
	}
	for value, paused := range map[string]bool{"true\n": true, "yes": true, "false": false, "": false} {
		if err := os.WriteFile(filepath.Join(dir, "pause"), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		if why := PausedBeside(file, "pause"); (why != "") != paused || paused && !strings.Contains(why, "spillway-pause") {
			t.Errorf("pause %q: %q, want paused %v", value, why, paused)
		}
	}
	if why := PausedBeside(filepath.Join(dir, "pause", "config.yaml"), "pause"); why == "" {
		t.Error("a switch that cannot be read does not pause")
	}
}
