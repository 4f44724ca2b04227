package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"
)

// lookEvery is how often the file is looked at. The kubelet renews a mounted ConfigMap about once a minute.
const lookEvery = 2 * time.Second

// FollowOptions configure a Follower. Path, Selector, Changes and Refuse are required.
type FollowOptions struct {
	Path     string
	Every    time.Duration // between two looks; default 2 s
	Selector Selector
	Look     func()        // called before each look; nil: nothing is
	Changes  chan<- Config // what the file says: at the start, when its text changes, and when it can be read again
	Refuse   func(error)   // called once for each text that is wrong, and when the file cannot be read
}

// Follower follows a config file.
type Follower struct{ opts FollowOptions }

// NewFollower checks the options and starts nothing.
func NewFollower(opts FollowOptions) (*Follower, error) {
	if opts.Path == "" || opts.Selector == nil || opts.Changes == nil || opts.Refuse == nil {
		return nil, errors.New("follow config: path, selector, changes and refuse are required")
	}
	if opts.Every < 0 {
		return nil, fmt.Errorf("follow config %s: every %s, want above 0", opts.Path, opts.Every)
	}
	if opts.Every == 0 {
		opts.Every = lookEvery
	}
	return &Follower{opts}, nil
}

// Run looks at the file until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	tick := time.NewTicker(f.opts.Every)
	defer tick.Stop()
	seen := ""  // the newest text; "" when it could not be read
	unread := 0 // looks in a row that could not read it
	for first := true; ; first = false {
		if f.opts.Look != nil {
			f.opts.Look()
		}
		text, err := readText(f.opts.Path)
		switch {
		case err != nil:
			if unread++; unread == 2 { // it may just be replaced at the first
				seen = ""
				f.opts.Refuse(err)
			}
		case string(text) != seen || unread >= 2 || first:
			seen = string(text)
			next, err := Parse(text, f.opts.Selector)
			if err != nil {
				f.opts.Refuse(fmt.Errorf("config %s: %w", f.opts.Path, err))
				break
			}
			select {
			case f.opts.Changes <- next:
			case <-ctx.Done():
			}
		}
		if err == nil {
			unread = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// partKeys are the settings that whole parts of the agent are made with: a change of them needs another agent.
var partKeys = []string{"sampling", "recording", "cri", "metrics"}

// Changed returns the keys of the file whose values differ.
func Changed(a, b *Config) (keys []string) {
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			keys = append(keys, x.Type().Field(i).Tag.Get("yaml"))
		}
	}
	return keys
}

// KeepParts gives c the values of old that only another agent can change, and returns the keys in which those differed.
func (c *Config) KeepParts(old *Config) (keys []string) {
	for _, key := range Changed(old, c) {
		if slices.Contains(partKeys, key) {
			keys = append(keys, key)
		}
	}
	c.Sampling, c.Recording, c.CRI, c.Metrics = old.Sampling, old.Recording, old.CRI, old.Metrics
	return keys
}

// PausedBeside says why evictions are paused by a file named key beside the config file, "" when they are not: where that is a
// mounted ConfigMap, the file is its key, which was the pause switch of earlier versions. A pause must not be lost.
func PausedBeside(file, key string) string {
	path := filepath.Join(filepath.Dir(file), key)
	text, err := os.ReadFile(path)
	switch v := strings.TrimSpace(string(text)); {
	case file == "" || errors.Is(err, fs.ErrNotExist):
		return ""
	case err != nil:
		return fmt.Sprintf("the pause switch beside the config file cannot be read: %v", err)
	case v == "" || v == "false":
		return ""
	default:
		return fmt.Sprintf("%s is %q: take the key %q out of the config's ConfigMap to go on; the pause switch is a ConfigMap of its own now, spillway-pause", path, v, key)
	}
}
