// Package deploy_test holds the manifests to what they promise: that the single file is in step with the base, that the
// overlays combine, and that the agent's pod and rights have no more than the reviewed list. It reads
// files only; whether an API server takes them is for the end-to-end tests to say.
package deploy_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// object is one Kubernetes object as YAML has it.
type object = map[string]any

// key is how the tests below name an object.
func key(o object) string {
	meta := dig[map[string]any](o, "metadata")
	return fmt.Sprintf("%v %v/%v", o["kind"], meta["namespace"], meta["name"])
}

// dig walks maps by name and returns the zero value where the path ends early or holds another type.
func dig[T any](in map[string]any, path ...string) T {
	var at any = in
	for _, name := range path {
		m, _ := at.(map[string]any)
		at = m[name]
	}
	out, _ := at.(T)
	return out
}

func load(t *testing.T, file string) map[string]object {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]object{}
	for dec := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var o object
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return objects
		} else if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if objects[key(o)] != nil {
			t.Errorf("%s: %s appears twice", file, key(o))
		}
		objects[key(o)] = o
	}
}

// TestSingleFileIsInStep compares spillway.yaml with the files of the base, but for what kustomize adds: labels on every
// object and the image's name.
func TestSingleFileIsInStep(t *testing.T) {
	const remedy = "deploy/spillway.yaml is not what deploy/base gives: run make manifests"
	kustomization := load(t, "base/kustomization.yaml")["Kustomization <nil>/<nil>"]
	want := map[string]object{}
	for _, file := range dig[[]any](kustomization, "resources") {
		maps.Copy(want, load(t, filepath.Join("base", file.(string))))
	}
	config, err := os.ReadFile("base/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want["ConfigMap spillway-system/spillway-config"] = object{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "spillway-config", "namespace": "spillway-system"},
		"data":     map[string]any{"config.yaml": string(config)},
	}

	image := dig[[]any](kustomization, "images")[0].(map[string]any)
	container := dig[[]any](want["DaemonSet spillway-system/spillway"], "spec", "template", "spec", "containers")[0].(map[string]any)
	if container["image"] != image["name"] {
		t.Fatalf("the DaemonSet's image is %v, kustomize replaces %v", container["image"], image["name"])
	}
	container["image"] = fmt.Sprintf("%v:%v", image["newName"], image["newTag"])

	got := load(t, "spillway.yaml")
	for _, o := range got {
		labels := dig[map[string]any](o, "metadata", "labels")
		for name, value := range dig[map[string]any](dig[[]any](kustomization, "labels")[0].(map[string]any), "pairs") {
			if labels[name] != value {
				t.Errorf("%s: label %s is %v, want %v; %s", key(o), name, labels[name], value, remedy)
			}
			delete(labels, name)
		}
		if len(labels) == 0 {
			delete(dig[map[string]any](o, "metadata"), "labels")
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-base +spillway.yaml):\n%s", remedy, diff)
	}
}

// TestOverlaysNameWhatTheyChange: a patch by number changes something else as soon as a line is added above it, and two such do
// not combine.
func TestOverlaysNameWhatTheyChange(t *testing.T) {
	for _, pattern := range []string{"overlays/*/kustomization.yaml", "components/*/kustomization.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) < 9 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if m := byNumber.FindString(string(text)); m != "" {
				t.Errorf("%s patches by number: %s", file, m)
			}
			kind := load(t, file)
			if want := map[bool]string{true: "Component", false: "Kustomization"}[strings.HasPrefix(file, "components")]; kind[want+" <nil>/<nil>"] == nil {
				t.Errorf("%s is no %s", file, want)
			}
		}
	}
}

var byNumber = regexp.MustCompile(`path: \S*/\d+(/\S*)?|fieldPaths: .*\.\d+`)

// TestPauseSwitchHasNoState: a key in the shipped object would end a pause whenever the manifest is applied again.
func TestPauseSwitchHasNoState(t *testing.T) {
	o := load(t, "spillway.yaml")["ConfigMap spillway-system/spillway-pause"]
	if o == nil || o["data"] != nil {
		t.Errorf("the pause switch is %v, want an object without data", o)
	}
}

// TestPodHasNoMoreThanItNeeds is the reviewed list of what the agent's pod may reach on the node.
func TestPodHasNoMoreThanItNeeds(t *testing.T) {
	pod := dig[map[string]any](load(t, "spillway.yaml")["DaemonSet spillway-system/spillway"], "spec", "template", "spec")
	containers := dig[[]any](pod, "containers")
	if len(containers) != 1 || pod["initContainers"] != nil {
		t.Fatalf("%d containers and init containers %v, want one container", len(containers), pod["initContainers"])
	}
	agent := containers[0].(map[string]any)

	for _, field := range []string{"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} {
		if pod[field] != nil {
			t.Errorf("%s is %v, want it unset", field, pod[field])
		}
	}
	wantSecurity := map[string]any{
		"privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
		"capabilities":    map[string]any{"drop": []any{"ALL"}, "add": []any{"BPF", "IPC_LOCK", "PERFMON"}},
		"appArmorProfile": map[string]any{"type": "Unconfined"}, "seLinuxOptions": map[string]any{"type": "spc_t"},
	}
	if diff := cmp.Diff(wantSecurity, agent["securityContext"]); diff != "" {
		t.Errorf("security context of the container (-want +got):\n%s", diff)
	}
	if got := dig[string](pod, "securityContext", "seccompProfile", "type"); got != "RuntimeDefault" {
		t.Errorf("seccomp profile is %q, want RuntimeDefault", got)
	}
	if limit, request := dig[string](agent, "resources", "limits", "memory"), dig[string](agent, "resources", "requests", "memory"); limit == "" || limit != request {
		t.Errorf("memory limit %q, request %q, want the same", limit, request)
	}
	if cpu := dig[any](agent, "resources", "limits", "cpu"); cpu != nil {
		t.Errorf("cpu limit is %v, want none: throttling hits under pressure", cpu)
	}

	paths := map[any]string{}
	for _, v := range dig[[]any](pod, "volumes") {
		volume := v.(map[string]any)
		paths[volume["name"]] = dig[string](volume, "hostPath", "path")
	}
	writable := []string{"/run/spillway", "/var/lib/spillway"}
	var reached []string
	for _, m := range dig[[]any](agent, "volumeMounts") {
		mount := m.(map[string]any)
		path := paths[mount["name"]]
		if path == "" {
			continue
		}
		reached = append(reached, path)
		if readOnly := mount["readOnly"] == true; readOnly == slices.Contains(writable, path) {
			t.Errorf("mount of %s: readOnly is %v", path, mount["readOnly"])
		}
		if p := mount["mountPropagation"]; p != nil && p != "None" {
			t.Errorf("mount of %s: propagation is %v", path, p)
		}
		if path == "/sys/fs/cgroup" && mount["recursiveReadOnly"] != "IfPossible" {
			t.Errorf("mount of %s: the controllers below it stay writable", path)
		}
	}
	slices.Sort(reached)
	want := []string{"/run/containerd", "/run/spillway", "/run/systemd/journal", "/sys/fs/cgroup", "/var/lib/kubelet/config.yaml", "/var/lib/spillway"}
	if diff := cmp.Diff(want, reached); diff != "" {
		t.Errorf("host paths (-want +got):\n%s", diff)
	}

	for _, a := range dig[[]any](agent, "args") {
		if addr, ok := strings.CutPrefix(a.(string), "--metrics-listen="); ok && !strings.HasPrefix(addr, "[$(POD_IP)]:") {
			t.Errorf("metrics listen on %s, want the pod's own address", addr)
		}
	}
}

// TestRightsAreTheReviewedList names every right, namespaced ones with their namespace.
func TestRightsAreTheReviewedList(t *testing.T) {
	var got []string
	for _, o := range load(t, "spillway.yaml") {
		if o["kind"] != "ClusterRole" && o["kind"] != "Role" {
			continue
		}
		for _, r := range dig[[]any](o, "rules") {
			rule := r.(map[string]any)
			for _, group := range dig[[]any](rule, "apiGroups") {
				for _, resource := range dig[[]any](rule, "resources") {
					got = append(got, strings.TrimSpace(fmt.Sprintf("%v %v/%v %v %v",
						dig[map[string]any](o, "metadata")["namespace"], group, resource, rule["verbs"], rule["resourceNames"])))
				}
			}
		}
	}
	slices.Sort(got)
	want := []string{
		"<nil> /events [create patch list] <nil>",
		"<nil> /nodes [get list] <nil>",
		"<nil> /nodes/configz [get] <nil>",
		"<nil> /nodes/stats [get] <nil>",
		"<nil> /pods [list watch] <nil>",
		"<nil> /pods/eviction [create] <nil>",
		"<nil> /replicationcontrollers [get] <nil>",
		"<nil> admissionregistration.k8s.io/validatingadmissionpolicies [get] [spillway-own-node spillway-own-node-label]",
		"<nil> admissionregistration.k8s.io/validatingadmissionpolicybindings [get] [spillway-own-node spillway-own-node-label]",
		"<nil> apps/replicasets [get] <nil>",
		"<nil> apps/statefulsets [get] <nil>",
		"<nil> autoscaling/horizontalpodautoscalers [list] <nil>",
		"<nil> batch/jobs [get] <nil>",
		"<nil> metrics.k8s.io/nodes [list] <nil>",
		"<nil> policy/poddisruptionbudgets [list] <nil>",
		"kube-node-lease coordination.k8s.io/leases [get] <nil>",
		"spillway-system /configmaps [get patch] [spillway-pause]",
		"spillway-system /configmaps [list watch] [spillway-pause]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rights (-want +got):\n%s", diff)
	}
}
