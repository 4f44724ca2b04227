package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
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
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	if err := dec.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one YAML document")
	}
	c := Default()
	var size struct {
		Preset Preset `yaml:"preset"`
	}
	_ = root.Decode(&size) // what is wrong is said below
	if p, ok := presets[size.Preset]; ok {
		c.Thresholds.AlertPercent, c.Thresholds.EvictPercent, c.RoundLimit = p.alert, p.evict, p.round
	}
	r := reader{lines: map[string]int{}}
	for _, n := range root.Content { // none in an empty file
		r.value("", n.Line, n, reflect.ValueOf(&c).Elem())
	}
	if len(r.errs) > 0 {
		return Config{}, errors.Join(r.errs...)
	}
	_, bad := c.check(parse)
	for _, p := range bad {
		r.fail(p.Field, r.lines[p.Field], "%s", p.Problem)
	}
	return c, errors.Join(r.errs...)
}

// Text returns c as a file that Parse reads.
func (c *Config) Text() (string, error) {
	text, err := yaml.Marshal(c)
	return string(text), err
}

// reader takes the values of a file, so that an error can name the key and what it takes: the library names a line and a type of
// Go.
type reader struct {
	lines map[string]int // of the file's keys, dotted
	errs  []error
}

// fail adds an error; line 0 is that of a key that the file does not have.
func (r *reader) fail(key string, line int, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if key != "" {
		text = key + ": " + text
	}
	if line > 0 {
		text = fmt.Sprintf("line %d: %s", line, text)
	}
	r.errs = append(r.errs, errors.New(text))
}

// wants says what a key takes, by the kind that it has in Config.
var wants = map[reflect.Kind]string{
	reflect.Struct: "keys with values", reflect.Map: "keys with values", reflect.Slice: "a list of strings", reflect.String: "a text", reflect.Bool: "true or false",
	reflect.Float64: "a number", reflect.Int: "a whole number", reflect.Pointer: "a whole number", reflect.Int64: "a duration such as 90s or 100ms",
}

// value takes what n says of key into v. A key without a value empties a list, and leaves the default otherwise.
func (r *reader) value(key string, line int, n *yaml.Node, v reflect.Value) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	var err error
	switch kind := v.Kind(); {
	case n.Kind == yaml.MappingNode && (kind == reflect.Struct || kind == reflect.Map):
		r.mapping(key, n, v)
	case kind == reflect.Int64 && n.ShortTag() != "!!null": // the library has no 0 without a unit
		var d time.Duration
		d, err = time.ParseDuration(n.Value)
		v.SetInt(int64(d))
	default:
		err = n.Decode(v.Addr().Interface())
	}
	if err != nil {
		given := map[yaml.Kind]string{yaml.MappingNode: "keys with values", yaml.SequenceNode: "a list"}[n.Kind]
		if given == "" {
			given = fmt.Sprintf("%.60q", n.Value)
		}
		r.fail(key, line, "%s, want %s", given, wants[v.Kind()])
	}
}

// mapping takes the keys of n into v, a struct or a map.
func (r *reader) mapping(key string, n *yaml.Node, v reflect.Value) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, line := n.Content[i].Value, n.Content[i].Line
		full := strings.TrimPrefix(key+"."+name, ".")
		if first, ok := r.lines[full]; ok {
			r.fail(full, line, "given twice, first in line %d", first)
			continue
		}
		var into reflect.Value
		if v.Kind() == reflect.Map {
			into = reflect.New(v.Type().Elem()).Elem()
		} else {
			for f, field := range v.Fields() {
				if f.Tag.Get("yaml") == name {
					into = field
				}
			}
		}
		if !into.IsValid() {
			r.fail("", line, "unknown key %q", name)
			continue
		}
		r.lines[full] = line
		r.value(full, line, n.Content[i+1], into)
		if v.Kind() == reflect.Map {
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type()))
			}
			v.SetMapIndex(reflect.ValueOf(name), into)
		}
	}
}
