package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/ledger"
	"spillway/agent/status"
)

// Install applies the shipped manifests in the given mode and waits until the agent sees all it needs.
func (r *Runner) Install(ctx context.Context, mode Mode) error { return r.install(ctx, mode, nil) }

func (r *Runner) install(ctx context.Context, mode Mode, config func(string) string) error {
	if err := r.forget(ctx); err != nil || mode == OwnAgent {
		return err
	}
	manifests, err := r.manifests(ctx, mode)
	if err != nil {
		return err
	}
	if config != nil {
		was := manifests
		if manifests = config(was); manifests == was {
			return errors.New("the case's config is the shipped one")
		}
	}
	if err := r.Cluster.Apply(ctx, manifests); err != nil {
		return err
	}
	_, err = r.Ready(ctx)
	return err
}

// pause sets the pause switch, and waits until the agent says so.
func (r *Runner) pause(ctx context.Context, paused bool) error {
	if _, err := r.Cluster.Kubectl(ctx, "-n", systemNamespace, "patch", "configmap", "spillway-pause", "-p", fmt.Sprintf(`{"data":{"pause":"%t"}}`, paused)); err != nil {
		return err
	}
	for {
		s, err := r.Status(ctx)
		if err == nil && s.Evictions.Paused == paused {
			return nil
		}
		if serr := sleep(ctx, 200*time.Millisecond); serr != nil {
			return fmt.Errorf("wait for the pause switch: %w: %w", serr, err)
		}
	}
}

// restart ends the agent's pod, and waits until the next one is ready.
func (r *Runner) restart(ctx context.Context) error {
	pod, err := r.AgentPod(ctx)
	if err != nil {
		return err
	}
	if _, err := r.Cluster.Kubectl(ctx, "-n", systemNamespace, "delete", "pod", pod.Name, "--timeout=60s"); err != nil {
		return err
	}
	_, err = r.Ready(ctx)
	return err
}

// manifests returns what is shipped for a mode.
func (r *Runner) manifests(ctx context.Context, mode Mode) (string, error) {
	if overlay := map[Mode]string{Enforce: "enforce", NodeIdentity: "node-identity"}[mode]; overlay != "" {
		return r.Cluster.Kubectl(ctx, "kustomize", filepath.Join(r.Repo, "deploy", "overlays", overlay))
	}
	text, err := os.ReadFile(filepath.Join(r.Repo, "deploy", "spillway.yaml"))
	return string(text), err
}

// forget removes the state of agents before, whose cooldown and cap belong to other cases.
func (r *Runner) forget(ctx context.Context) error {
	const state = "/var/lib/spillway/" + ledger.FileName
	var err error
	if r.onMachine() {
		_, err = output(r.Cluster.Command(ctx, "rm", "-rf", state))
	} else {
		err = r.Node.RemoveFile(ctx, state)
	}
	if err != nil {
		return fmt.Errorf("remove the state of the agent before: %w", err)
	}
	return nil
}

func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return string(out), nil
}

// Ready waits until the agent on the node sees all it needs, and returns its status.
func (r *Runner) Ready(ctx context.Context) (*status.Status, error) {
	deadline, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var last string
	for {
		s, err := r.Status(deadline)
		if err == nil {
			if last = notReady(s); last == "" {
				return s, nil
			}
		} else {
			last = err.Error()
		}
		if sleep(deadline, 200*time.Millisecond) != nil {
			logs, _ := r.AgentLog(ctx)
			return nil, fmt.Errorf("the agent is not ready: %s\n%s", last, logs)
		}
	}
}

func notReady(s *status.Status) string {
	for _, src := range s.Sources {
		switch src.Name {
		case "api-server", "cri", "kubelet-config", "node", "pod-map":
			if src.State != status.OK {
				return src.Name + ": " + src.Detail
			}
		}
	}
	if s.Pressure.Level != "calm" && s.Pressure.Level != "alert" {
		return "level " + s.Pressure.Level + ": " + s.Pressure.Reason
	}
	return ""
}

// Uninstall removes the agent.
func (r *Runner) Uninstall(ctx context.Context) error {
	ds := r.Cluster.Client().AppsV1().DaemonSets(systemNamespace)
	if err := ds.Delete(ctx, "spillway", metav1.DeleteOptions{PropagationPolicy: &foreground}); apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	for {
		_, err := ds.Get(ctx, "spillway", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if serr := sleep(ctx, 100*time.Millisecond); serr != nil {
			return fmt.Errorf("wait for the agent to go: %w", serr)
		}
	}
}

var foreground = metav1.DeletePropagationForeground

// Status asks the agent on the node through its socket, as an operator there would.
func (r *Runner) Status(ctx context.Context) (*status.Status, error) {
	out, err := r.Agent(ctx, "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	var s status.Status
	if err := json.Unmarshal(out, &s); err != nil {
		return nil, fmt.Errorf("spillway status: %w", err)
	}
	return &s, nil
}

// Agent runs a command of the agent's binary next to the agent and returns its standard output: on the machine's own
// node in its namespaces, in a virtual machine in the agent's container.
func (r *Runner) Agent(ctx context.Context, args ...string) ([]byte, error) {
	if !r.onMachine() {
		pod, err := r.AgentPod(ctx)
		if err != nil {
			return nil, err
		}
		out, err := r.Cluster.Kubectl(ctx, append([]string{"-n", systemNamespace, "exec", pod.Name, "--", "/spillway"}, args...)...)
		return []byte(out), err
	}
	out, err := r.Cluster.Command(ctx, r.Binary, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return nil, fmt.Errorf("spillway %s: %w: %s", args[0], err, strings.TrimSpace(string(exit.Stderr)))
		}
		return nil, fmt.Errorf("spillway %s: %w", args[0], err)
	}
	return out, nil
}

// Local runs a command of the agent's binary here, for what needs no agent.
func (r *Runner) Local(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, r.Binary, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("spillway %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// AgentPod finds the agent's pod on the node.
func (r *Runner) AgentPod(ctx context.Context) (*corev1.Pod, error) {
	r.useDefaultNode()
	list, err := r.Cluster.Client().CoreV1().Pods(systemNamespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=spillway", FieldSelector: "spec.nodeName=" + r.Node.NodeName(),
	})
	if err != nil {
		return nil, fmt.Errorf("find the agent's pod: %w", err)
	}
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			return &p, nil
		}
	}
	return nil, fmt.Errorf("find the agent's pod: none on node %s", r.Node.NodeName())
}

// AgentLog returns the log so far of the agent on the node.
func (r *Runner) AgentLog(ctx context.Context) (string, error) {
	pod, err := r.AgentPod(ctx)
	if err != nil {
		return "", err
	}
	return r.Cluster.Kubectl(ctx, "-n", systemNamespace, "logs", pod.Name, "--tail=200")
}

// onMachine says whether the node is the machine's own.
func (r *Runner) onMachine() bool {
	r.useDefaultNode()
	return r.Node.NodeName() == r.Cluster.NodeName()
}

func (r *Runner) useDefaultNode() {
	if r.Node == nil {
		r.Node = r.Cluster.Host()
	}
}
