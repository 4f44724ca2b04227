package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
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
// apiVersion or kind, and a malformed value are errors that name file and field.
func ReadKubeletConfigFile(path, dropInDir string) (KubeletConfig, error) {
	base, err := readKubeletDocument(path)
	if err != nil {
		return KubeletConfig{}, err
	}
	if err := refuseNulls(base); err != nil {
		return KubeletConfig{}, fmt.Errorf("read kubelet config %s: %w", path, err)
	}
	applyBaseDefaults(base)
	dropIns := 0
	if dropInDir != "" {
		dropEmpty(base)
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
			mergePatch(base, patch)
			dropIns++
			return nil
		})
		if err != nil {
			return KubeletConfig{}, fmt.Errorf("read kubelet drop-in folder %s: %w", dropInDir, err)
		}
		applyFinalDefaults(base)
	}
	source := fmt.Sprintf("file %s + %d drop-ins", path, dropIns)
	k, err := kubeletConfigOf(base)
	if err == nil {
		_, err = k.MemoryThresholds()
	}
	if err != nil {
		return KubeletConfig{}, fmt.Errorf("read kubelet config %s: %w", source, err)
	}
	k.Source = source
	return k, nil
}

func readKubeletDocument(path string) (map[string]any, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read kubelet config: %w", err)
	}
	doc, err := parseKubeletDocument(data)
	if err != nil {
		return nil, fmt.Errorf("read kubelet config %s: %w", path, err)
	}
	return doc, nil
}

// parseKubeletDocument parses one file and checks each field that we use, so that an error can name the file at fault.
func parseKubeletDocument(data []byte) (map[string]any, error) {
	if len(data) == 0 {
		return nil, errors.New("empty")
	}
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if doc["apiVersion"] != kubeletAPIVersion || doc["kind"] != kubeletKind {
		return nil, fmt.Errorf("apiVersion %v, kind %v: want %s, %s", doc["apiVersion"], doc["kind"], kubeletAPIVersion, kubeletKind)
	}
	k, err := kubeletConfigOf(doc)
	if err != nil {
		return nil, err
	}
	// The grace period of a soft threshold may come from another file: checked once all are merged.
	k.EvictionSoftGracePeriod = map[string]time.Duration{SignalMemory: 0, SignalAllocatableMemory: 0}
	if _, err := k.MemoryThresholds(); err != nil {
		return nil, err
	}
	if _, _, err := k.Reserved(); err != nil {
		return nil, err
	}
	return doc, nil
}

// refuseNulls: in a main file a null value of a key is the empty string to the kubelet, which is no threshold and no
// quantity. Only in a drop-in has it a meaning.
func refuseNulls(doc map[string]any) error {
	for _, field := range [...]string{"evictionHard", "evictionSoft", "evictionSoftGracePeriod", "systemReserved", "kubeReserved"} {
		obj, _ := doc[field].(map[string]any)
		for k, v := range obj {
			if v == nil {
				return fmt.Errorf("%s %s: null, want a string", field, k)
			}
		}
	}
	return nil
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
		if !ok {
			target = make(map[string]any)
			doc[k] = target
		}
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
			switch v := v.(type) {
			case nil: // in a drop-in it removes the key
			case string:
				out[k] = v
			default:
				return nil, fmt.Errorf("%s %s: %s, want a string", field, k, jsonKind(v))
			}
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
