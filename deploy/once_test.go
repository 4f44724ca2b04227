package deploy_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const agentSocket = "/run/spillway/spillway.sock"

// TestOnceCronJob: the example reaches the agent's socket on the node and nothing else, and runs once.
func TestOnceCronJob(t *testing.T) {
	o := load(t, "once/cronjob.yaml")["CronJob spillway-system/spillway-once-node-1"]
	if o == nil {
		t.Fatal("once/cronjob.yaml holds no CronJob spillway-once-node-1 in spillway-system")
	}
	for path, want := range map[string]any{
		"apiVersion": "batch/v1", "spec concurrencyPolicy": "Forbid", "spec jobTemplate spec backoffLimit": 0,
		"spec jobTemplate spec template spec restartPolicy": "Never", "spec jobTemplate spec template spec automountServiceAccountToken": false,
		"spec jobTemplate spec template spec securityContext runAsUser":           0,
		"spec jobTemplate spec template spec securityContext seccompProfile type": "RuntimeDefault",
		"spec jobTemplate spec template spec nodeSelector kubernetes.io/hostname": "node-1",
		"spec jobTemplate spec template metadata annotations spillway/evict":      "never",
		"spec jobTemplate spec template spec hostNetwork":                         nil,
		"spec jobTemplate spec template spec hostPID":                             nil,
	} {
		if got := dig[any](o, strings.Fields(path)...); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if dig[int](o, "spec", "jobTemplate", "spec", "activeDeadlineSeconds") <= 0 {
		t.Error("a run without an end")
	}
	pod := dig[map[string]any](o, "spec", "jobTemplate", "spec", "template", "spec")
	containers := dig[[]any](pod, "containers")
	if len(containers) != 1 {
		t.Fatalf("%d containers, want one", len(containers))
	}
	once := containers[0].(map[string]any)
	if once["image"] != "localhost/spillway:dev" || once["command"] != nil { // the image's entry point is the binary
		t.Errorf("image %v, command %v", once["image"], once["command"])
	}
	if diff := cmp.Diff([]any{"once", "--target-usage=80", "--socket=" + agentSocket}, once["args"]); diff != "" {
		t.Errorf("args (-want +got):\n%s", diff)
	}
	wantSecurity := map[string]any{"privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": map[string]any{"drop": []any{"ALL"}}}
	if diff := cmp.Diff(wantSecurity, once["securityContext"]); diff != "" {
		t.Errorf("security context (-want +got):\n%s", diff)
	}
	wantVolumes := []any{map[string]any{"name": "run", "hostPath": map[string]any{"path": "/run/spillway", "type": "Directory"}}}
	if diff := cmp.Diff(wantVolumes, pod["volumes"]); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
	wantMounts := []any{map[string]any{"name": "run", "mountPath": "/run/spillway", "readOnly": true}}
	if diff := cmp.Diff(wantMounts, once["volumeMounts"]); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
	// The agent of the DaemonSet makes the socket there.
	agent := dig[map[string]any](load(t, "base/daemonset.yaml")["DaemonSet spillway-system/spillway"], "spec", "template", "spec")
	if !slices.ContainsFunc(dig[[]any](agent, "volumes"), func(v any) bool { return dig[string](v.(map[string]any), "hostPath", "path") == "/run/spillway" }) {
		t.Error("the agent has no /run/spillway of the node")
	}
}

// unit reads a systemd unit: section and key, with all values of the key.
func unit(t *testing.T, file string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out, section := map[string][]string{}, ""
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' && line[len(line)-1] == ']' {
			section = line[1 : len(line)-1]
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section == "" || strings.ContainsAny(key, " \t") {
			t.Errorf("%s:%d: %q is no setting of a section", file, n+1, line)
			continue
		}
		out[section+" "+key] = append(out[section+" "+key], value)
	}
	return out
}

// TestOnceUnits: the service asks the agent's socket once, and the timer belongs to it.
func TestOnceUnits(t *testing.T) {
	service := unit(t, "once/spillway-once.service")
	for key, want := range map[string]string{
		"Unit ConditionPathExists": agentSocket, "Service Type": "oneshot", "Service TimeoutStartSec": "1h", "Service RestrictAddressFamilies": "AF_UNIX",
		"Service ExecStart": "/usr/local/bin/spillway once --target-usage 80 --socket " + agentSocket,
	} {
		if got := service[key]; len(got) != 1 || got[0] != want {
			t.Errorf("service: %s is %q, want %q", key, got, want)
		}
	}
	if service["Install WantedBy"] != nil {
		t.Error("the service is started by its timer, not at boot")
	}
	timer := unit(t, "once/spillway-once.timer") // of the same name: it starts the service without naming it
	for key, want := range map[string]string{"Install WantedBy": "timers.target", "Timer Persistent": "no"} {
		if got := timer[key]; len(got) != 1 || got[0] != want {
			t.Errorf("timer: %s is %q, want %q", key, got, want)
		}
	}
	if len(timer["Timer OnCalendar"]) == 0 || len(timer["Timer Unit"]) != 0 {
		t.Errorf("timer: OnCalendar %q, Unit %q", timer["Timer OnCalendar"], timer["Timer Unit"])
	}
}
