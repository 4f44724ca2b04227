package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxBytes bounds a config file: a ConfigMap holds no more than 1 MiB.
const maxBytes = 1 << 20

// readText reads a config file.
func readText(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	if len(data) > maxBytes {
		return nil, fmt.Errorf("read config %s: larger than %d bytes", path, maxBytes)
	}
	return data, nil
}

// Load reads and checks a config file. Its errors name the file, the line and the key, and what would be right.
func Load(path string, parse Selector) (Config, error) {
	data, err := readText(path)
	if err != nil {
		return Config{}, err
	}
	c, err := Parse(data, parse)
	if err != nil {
		return Config{}, fmt.Errorf("config %s: %w", path, err)
	}
	return c, nil
}

// Parse parses and checks a config file's text.
func Parse(data []byte, parse Selector) (Config, error) {
	c := Default()
	var size struct {
		Preset Preset `yaml:"preset"`
	}
	if yaml.Unmarshal(data, &size) == nil { // what is wrong otherwise is said below
		if p, ok := presets[size.Preset]; ok {
			c.Thresholds.AlertPercent, c.Thresholds.EvictPercent, c.RoundLimit = p.alert, p.evict, p.round
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, explainYAML(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one YAML document")
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return Config{}, explainYAML(err)
	}
	var errs []error
	_, bad := c.check(parse)
	for _, p := range bad {
		errs = append(errs, fmt.Errorf("%s%s: %s", lineOf(&root, p.Field), p.Field, p.Problem))
	}
	return c, errors.Join(errs...)
}

// Text returns c as a file that Parse reads.
func (c *Config) Text() (string, error) {
	text, err := yaml.Marshal(c)
	return string(text), err
}

// Duration is a time.Duration that is written as in Go: 90s, 100ms.
type Duration time.Duration

// UnmarshalYAML accepts only a string with a unit.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %q is not a duration such as 90s or 100ms", n.Line, n.Value)}}
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// LogLevel is debug, info, warn or error.
type LogLevel slog.Level

// UnmarshalYAML accepts the names of the levels.
func (l *LogLevel) UnmarshalYAML(n *yaml.Node) error {
	switch n.Value {
	case "debug", "info", "warn", "error":
		var level slog.Level
		if err := level.UnmarshalText([]byte(n.Value)); err != nil {
			return err
		}
		*l = LogLevel(level)
		return nil
	}
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %q is not a log level: debug, info, warn, error", n.Line, n.Value)}}
}

// MarshalYAML writes what UnmarshalYAML reads.
func (l LogLevel) MarshalYAML() (any, error) { return strings.ToLower(slog.Level(l).String()), nil }

var (
	yamlLine    = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	yamlUnknown = regexp.MustCompile(`^field (\S+) not found in type .*$`)
	yamlKind    = regexp.MustCompile("^cannot unmarshal \\S+ `?([^`]*)`? ?into (\\S+)$")
)

// explainYAML rewords the library's errors: line first, then the key or value, without Go's type names.
func explainYAML(err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var errs []error
	for _, text := range te.Errors {
		line, rest := "", text
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			line, rest = "line "+m[1]+": ", m[2]
		}
		if m := yamlUnknown.FindStringSubmatch(rest); m != nil {
			rest = fmt.Sprintf("unknown key %q", m[1])
		} else if m := yamlKind.FindStringSubmatch(rest); m != nil {
			want := map[string]string{"float64": "a number", "int": "a whole number", "bool": "true or false", "[]string": "a list of strings"}[m[2]]
			if want == "" {
				want = "another kind of value"
			}
			rest = fmt.Sprintf("%q, want %s", m[1], want)
		}
		errs = append(errs, errors.New(line+rest))
	}
	return errors.Join(errs...)
}

// lineOf returns "line N: " for a dotted key, "" when the file does not have it.
func lineOf(root *yaml.Node, key string) string {
	n := root
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	line := 0
	for _, part := range strings.Split(key, ".") {
		found := false
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == part {
				line, n, found = n.Content[i].Line, n.Content[i+1], true
				break
			}
		}
		if !found {
			return ""
		}
	}
	return "line " + strconv.Itoa(line) + ": "
}
