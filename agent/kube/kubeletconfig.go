package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sigs.k8s.io/yaml"
)

// KubeletConfig is the part of a kubelet's effective configuration that says when it evicts for memory.
type KubeletConfig struct {
	// Source is "configz", or "file <path> + <n> drop-ins".
	Source string

	EvictionHard            map[string]string
	EvictionSoft            map[string]string
	EvictionSoftGracePeriod map[string]time.Duration
	// EnforceNodeAllocatable: with "pods" in it the hard memory threshold also holds for kubepods.
	EnforceNodeAllocatable []string
	SystemReserved         map[string]string
	KubeReserved           map[string]string
	CgroupDriver           string // "cgroupfs" or "systemd", as configured: newer kubelets may take the runtime's instead
	CgroupRoot             string
	// MergeDefaultEvictionSettings is stated for the record: EvictionHard already has the defaults where they apply.
	MergeDefaultEvictionSettings bool
}

// defaultEvictionHard are the kubelet's defaults on Linux (pkg/kubelet/eviction/defaults_linux.go).
func defaultEvictionHard() map[string]string {
	return map[string]string{
		"memory.available":   "100Mi",
		"nodefs.available":   "10%",
		"nodefs.inodesFree":  "5%",
		"imagefs.available":  "15%",
		"imagefs.inodesFree": "5%",
	}
}

const (
	kubeletAPIVersion = "kubelet.config.k8s.io/v1beta1"
	kubeletKind       = "KubeletConfiguration"
	dropInExtension   = ".conf"
)

// ReadKubeletConfigFile reads a KubeletConfiguration, YAML or JSON, and the *.conf files below dropInDir ("" for none)
// merged over it in lexical order of their paths (KEP-3983; cmd/kubelet/app/server.go). Like the kubelet it
//   - puts the default evictionHard where the main file has none, before the drop-ins; fills in what is missing when
//     the main file sets mergeDefaultEvictionSettings, and ignores that field in a drop-in;
//   - leaves evictionHard without memory.available otherwise: no memory threshold then;
//   - merges objects key by key and replaces lists; null removes;
//   - sets enforceNodeAllocatable to ["pods"] where it is absent.
//
// Command-line flags of the kubelet win over its files and are not seen here. A folder that does not exist, another
// apiVersion or kind, and a malformed value are errors that name file and field. A malformed value that a later file
// replaces is none: it never takes effect.
func ReadKubeletConfigFile(path, dropInDir string) (KubeletConfig, error) {
	base, err := readKubeletDocument(path)
	if err != nil {
		return KubeletConfig{}, err
	}
	files := []kubeletDocument{base}
	// The kubelet reads the main file by itself first: a wrong type in it is not mended by a drop-in.
	if _, err := kubeletConfigOf(base.fields); err != nil {
		return KubeletConfig{}, blame(files, path, err)
	}
	doc := maps.Clone(base.fields)
	applyBaseDefaults(doc)
	if dropInDir != "" {
		dropEmpty(doc)
		err := filepath.WalkDir(dropInDir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() || filepath.Ext(d.Name()) != dropInExtension {
				return nil
			}
			patch, err := readKubeletDocument(p)
			if err != nil {
				return err
			}
			files = append(files, patch)
			mergePatch(doc, patch.fields)
			return nil
		})
		if err != nil {
			return KubeletConfig{}, fmt.Errorf("read kubelet drop-in folder %s: %w", dropInDir, err)
		}
		applyFinalDefaults(doc)
	}
	source := fmt.Sprintf("file %s + %d drop-ins", path, len(files)-1)
	k, err := effectiveConfig(doc)
	if err != nil {
		return KubeletConfig{}, blame(files, source, err)
	}
	k.Source = source
	return k, nil
}

// effectiveConfig reads a complete configuration and refuses values that the kubelet would not start with.
func effectiveConfig(doc map[string]any) (KubeletConfig, error) {
	k, err := kubeletConfigOf(doc)
	if err != nil {
		return KubeletConfig{}, err
	}
	if _, err := k.MemoryThresholds(); err != nil {
		return KubeletConfig{}, err
	}
	if _, _, err := k.Reserved(); err != nil {
		return KubeletConfig{}, err
	}
	return k, nil
}

// blame names the last file that has a fault by itself; a soft threshold without its grace period is one of the whole.
func blame(files []kubeletDocument, source string, err error) error {
	for i, f := range slices.Backward(files) {
		fields := f.fields
		if i > 0 { // in a drop-in a null removes, it is no value
			fields = map[string]any{}
			mergePatch(fields, f.fields)
		}
		k, own := kubeletConfigOf(fields)
		if own == nil {
			k.EvictionSoftGracePeriod = map[string]time.Duration{SignalMemory: 0, SignalAllocatableMemory: 0}
			_, own = k.MemoryThresholds()
		}
		if own == nil {
			_, _, own = k.Reserved()
		}
		if own != nil {
			return fmt.Errorf("read kubelet config %s: %w", f.path, own)
		}
	}
	return fmt.Errorf("read kubelet config %s: %w", source, err)
}

// kubeletDocument is one file.
type kubeletDocument struct {
	path   string
	fields map[string]any
}

func readKubeletDocument(path string) (kubeletDocument, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return kubeletDocument{}, fmt.Errorf("read kubelet config: %w", err)
	}
	fields, err := parseKubeletDocument(data)
	if err != nil {
		return kubeletDocument{}, fmt.Errorf("read kubelet config %s: %w", path, err)
	}
	return kubeletDocument{path, fields}, nil
}

func parseKubeletDocument(data []byte) (map[string]any, error) {
	if len(data) == 0 {
		return nil, errors.New("empty")
	}
	var doc map[string]any
	// The kubelet's own library: it reads YAML 1.1, in which yes and on are true, and the one of our config file YAML 1.2.
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if doc["apiVersion"] != kubeletAPIVersion || doc["kind"] != kubeletKind {
		return nil, fmt.Errorf("apiVersion %v, kind %v: want %s, %s", doc["apiVersion"], doc["kind"], kubeletAPIVersion, kubeletKind)
	}
	return doc, nil
}

func applyBaseDefaults(doc map[string]any) {
	hard, ok := doc["evictionHard"].(map[string]any)
	if !ok { // absent or null
		hard = nil
	}
	if merge, _ := doc["mergeDefaultEvictionSettings"].(bool); hard == nil || merge {
		all := make(map[string]any)
		for k, v := range defaultEvictionHard() {
			all[k] = v
		}
		maps.Copy(all, hard)
		doc["evictionHard"] = all
	}
	applyFinalDefaults(doc)
}

func applyFinalDefaults(doc map[string]any) {
	if doc["enforceNodeAllocatable"] == nil {
		doc["enforceNodeAllocatable"] = []any{"pods"}
	}
	if v, _ := doc["cgroupDriver"].(string); v == "" {
		doc["cgroupDriver"] = "cgroupfs"
	}
}

// dropEmpty removes empty lists and objects: the kubelet writes its configuration to JSON before it merges drop-ins,
// where "omitempty" loses them. With a drop-in folder, even an empty one, `enforceNodeAllocatable: []` of the main
// file therefore becomes ["pods"] again.
func dropEmpty(doc map[string]any) {
	for k, v := range doc {
		switch v := v.(type) {
		case map[string]any:
			if len(v) == 0 {
				delete(doc, k)
			}
		case []any:
			if len(v) == 0 {
				delete(doc, k)
			}
		}
	}
}

// mergePatch applies a JSON merge patch (RFC 7386) to doc in place.
func mergePatch(doc, patch map[string]any) {
	for k, v := range patch {
		if v == nil {
			delete(doc, k)
			continue
		}
		obj, ok := v.(map[string]any)
		if !ok {
			doc[k] = v
			continue
		}
		target, ok := doc[k].(map[string]any)
		if ok {
			target = maps.Clone(target) // the files stay as they were read
		} else {
			target = make(map[string]any)
		}
		doc[k] = target
		mergePatch(target, obj)
	}
}

// kubeletConfigOf reads the fields as they stand, without defaults. Field names are case-sensitive, as in the kubelet.
func kubeletConfigOf(doc map[string]any) (KubeletConfig, error) {
	var k KubeletConfig
	var err error
	for _, f := range []struct {
		name string
		into *map[string]string
	}{
		{"evictionHard", &k.EvictionHard}, {"evictionSoft", &k.EvictionSoft},
		{"systemReserved", &k.SystemReserved}, {"kubeReserved", &k.KubeReserved},
	} {
		if *f.into, err = stringMap(doc, f.name); err != nil {
			return KubeletConfig{}, err
		}
	}
	periods, err := stringMap(doc, "evictionSoftGracePeriod")
	if err != nil {
		return KubeletConfig{}, err
	}
	for signal, value := range periods {
		d, err := time.ParseDuration(value)
		if err == nil && d < 0 {
			err = errors.New("negative")
		}
		if err != nil {
			return KubeletConfig{}, fmt.Errorf("evictionSoftGracePeriod %s %q: %w", signal, value, err)
		}
		if k.EvictionSoftGracePeriod == nil {
			k.EvictionSoftGracePeriod = make(map[string]time.Duration)
		}
		k.EvictionSoftGracePeriod[signal] = d
	}
	switch list := doc["enforceNodeAllocatable"].(type) {
	case nil:
	case []any:
		for i, v := range list {
			s, ok := v.(string)
			if !ok {
				return KubeletConfig{}, fmt.Errorf("enforceNodeAllocatable[%d]: %s, want a string", i, jsonKind(v))
			}
			k.EnforceNodeAllocatable = append(k.EnforceNodeAllocatable, s)
		}
	default:
		return KubeletConfig{}, fmt.Errorf("enforceNodeAllocatable: %s, want a list", jsonKind(list))
	}
	for _, f := range []struct {
		name string
		into *string
	}{{"cgroupDriver", &k.CgroupDriver}, {"cgroupRoot", &k.CgroupRoot}} {
		switch v := doc[f.name].(type) {
		case nil:
		case string:
			*f.into = v
		default:
			return KubeletConfig{}, fmt.Errorf("%s: %s, want a string", f.name, jsonKind(v))
		}
	}
	switch v := doc["mergeDefaultEvictionSettings"].(type) {
	case nil:
	case bool:
		k.MergeDefaultEvictionSettings = v
	default:
		return KubeletConfig{}, fmt.Errorf("mergeDefaultEvictionSettings: %s, want true or false", jsonKind(v))
	}
	return k, nil
}

func stringMap(doc map[string]any, field string) (map[string]string, error) {
	switch obj := doc[field].(type) {
	case nil:
		return nil, nil
	case map[string]any:
		out := make(map[string]string, len(obj))
		for k, v := range obj {
			s, ok := v.(string)
			if !ok { // null, too: to the kubelet it is the empty string, which is no threshold and no quantity
				return nil, fmt.Errorf("%s %s: %s, want a string", field, k, jsonKind(v))
			}
			out[k] = s
		}
		return out, nil
	default:
		return nil, fmt.Errorf("%s: %s, want an object", field, jsonKind(obj))
	}
}

func jsonKind(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	case float64, int64, json.Number:
		return "a number"
	default:
		return fmt.Sprintf("%T", v)
	}
}
