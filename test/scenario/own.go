package scenario

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"spillway/agent/status"
	"spillway/test/faults"
)

// ownReady is how long an agent may take until it sees what it needs.
const ownReady = 30 * time.Second

// Own is an agent on the machine's own node that a case starts, kills and starts again, and the proxy between it and the API
// server. Its socket and its cluster role are those of an installed agent, its folder is its own.
type Own struct {
	Proxy *faults.Proxy
	Dir   string // on the node's disk: config.yaml, kubeconfig, state
	args  []string
	wrap  []string // what the agent is started with
	r     *Runner

	cmd    *exec.Cmd
	stderr *bytes.Buffer // of the newest start
	done   chan error
}

// ownAccount may do everything: the proxy ends TLS, and an administrator's certificate with it.
const ownAccount = `apiVersion: v1
kind: ServiceAccount
metadata: {name: own-agent, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: own-agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: own-agent, namespace: default}]
`

// NewOwn prepares an agent of that binary with that config file; Close takes everything away.
func (r *Runner) NewOwn(ctx context.Context, binary, config string) (_ *Own, err error) {
	o := &Own{r: r}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	admin := r.Cluster.RESTConfig()
	if err := rest.LoadTLSFiles(admin); err != nil {
		return nil, err
	}
	own, err := rest.TLSConfigFor(&rest.Config{Host: admin.Host, TLSClientConfig: rest.TLSClientConfig{CAData: admin.CAData}})
	if err != nil {
		return nil, err
	}
	listener, err := r.Cluster.Listen(ctx, "127.0.0.1:0") // where the agent runs
	if err != nil {
		return nil, err
	}
	if o.Proxy, err = faults.Start(faults.Options{Target: admin.Host, RootCAs: own.RootCAs, Dial: admin.Dial, Listener: listener}); err != nil {
		return nil, err
	}
	if err := r.Cluster.Apply(ctx, ownAccount); err != nil {
		return nil, err
	}
	token, err := r.Cluster.Kubectl(ctx, "create", "token", "own-agent")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.Cluster.Run().Disk(), 0o755); err != nil {
		return nil, err
	}
	if o.Dir, err = os.MkdirTemp(r.Cluster.Run().Disk(), "own-"); err != nil {
		return nil, err
	}
	// The kubelet's certificate is of the cluster's authority.
	authorities := base64.StdEncoding.EncodeToString(append(slices.Clone(o.Proxy.CA()), admin.CAData...))
	for name, text := range map[string]string{
		"kubeconfig": fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]\nusers: [{name: u, user: {token: %s}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n",
			o.Proxy.URL(), authorities, strings.TrimSpace(token)),
		"config.yaml": config,
	} {
		if err := os.WriteFile(filepath.Join(o.Dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(o.State(), 0o755); err != nil {
		return nil, err
	}
	o.args = []string{binary, "agent", "--node-name", r.Cluster.NodeName(), "--kubeconfig", filepath.Join(o.Dir, "kubeconfig"),
		"--config", filepath.Join(o.Dir, "config.yaml"), "--state-dir", o.State()}
	return o, nil
}

// Use has the next start run another binary.
func (o *Own) Use(binary string) { o.args[0] = binary }

// State is the agent's folder for what survives a restart.
func (o *Own) State() string { return filepath.Join(o.Dir, "state") }

// Log is what the agent wrote since its newest start; read it when that has ended.
func (o *Own) Log() string {
	if o.stderr == nil {
		return ""
	}
	return o.stderr.String()
}

// Start runs an agent where operators look for it, and waits until it sees all it needs or is under way with an eviction.
func (o *Own) Start(ctx context.Context) error {
	o.stderr, o.done = new(bytes.Buffer), make(chan error, 1)
	args := slices.Concat(o.wrap, o.args)
	o.cmd = o.r.Cluster.Command(context.WithoutCancel(ctx), args[0], args[1:]...)
	o.cmd.Stderr = o.stderr
	if err := o.cmd.Start(); err != nil {
		return err
	}
	cmd, done := o.cmd, o.done
	go func() { done <- cmd.Wait() }()
	for begin := time.Now(); ; {
		s, err := o.r.Status(ctx)
		if err == nil && (len(s.Evictions.Outcomes) > 0 || SourceOK(s, "api-server", "kubelet-config", "cri")) {
			return nil
		}
		if time.Since(begin) > ownReady {
			return fmt.Errorf("the agent is not ready within %s: %w", ownReady, err)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// SourceOK reports whether all these sources work.
func SourceOK(s *status.Status, names ...string) bool {
	for _, name := range names {
		i := slices.IndexFunc(s.Sources, func(x status.Source) bool { return x.Name == name })
		if i < 0 || s.Sources[i].State != status.OK {
			return false
		}
	}
	return true
}

// Kill ends the agent with SIGKILL: the program that leads it into the node dies of it, and it with that.
func (o *Own) Kill() {
	if o.cmd == nil {
		return
	}
	o.cmd.Process.Signal(syscall.SIGKILL)
	<-o.done
	o.cmd = nil
}

// Apart gives the agent a mount namespace of its own from its next start on: what is mounted there only it meets.
func (o *Own) Apart() { o.wrap = []string{"unshare", "--mount"} }

// Inside runs a script of the shell in the agent's mount namespace.
func (o *Own) Inside(ctx context.Context, script string) error {
	if err := o.find(ctx, `nsenter -m -t ${p#/proc/} sh -c "$3"`, script); err != nil {
		return fmt.Errorf("run %q beside the agent: %w", script, err)
	}
	return nil
}

// Signal sends a signal, such as STOP, to the agent itself.
func (o *Own) Signal(ctx context.Context, name string) error {
	if err := o.find(ctx, `kill -$3 ${p#/proc/}`, name); err != nil {
		return fmt.Errorf("send %s to the agent: %w", name, err)
	}
	return nil
}

// find does something to the agent's process, $p in /proc, with $3 as argument.
func (o *Own) find(ctx context.Context, do, arg string) error {
	// Not by name: commands of the same binary come and go. Process 1 of the node sees only the node's.
	script := `for p in /proc/[0-9]*; do if tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q "^$1 agent .*--state-dir $2"; then ` + do + ` && found=1; fi; done; [ -n "$found" ]`
	if out, err := o.r.Cluster.Command(ctx, "sh", "-c", script, "sh", o.args[0], o.State(), arg).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Close kills the agent and takes away what NewOwn made.
func (o *Own) Close() error {
	o.Kill()
	var errs []error
	if o.Proxy != nil {
		errs = append(errs, o.Proxy.Close())
	}
	_, err := o.r.Cluster.Kubectl(context.Background(), "delete", "serviceaccount/own-agent", "clusterrolebinding/own-agent", "--ignore-not-found")
	errs = append(errs, err)
	if o.Dir != "" {
		errs = append(errs, os.RemoveAll(o.Dir))
	}
	return errors.Join(errs...)
}
