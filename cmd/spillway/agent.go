package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"spillway/agent"
	"spillway/agent/config"
	"spillway/agent/journal"
	"spillway/agent/kube"
	"spillway/agent/status"
	"spillway/ebpf/oomkill/kmsg"
)

func agentCommand(stderr io.Writer) *cobra.Command {
	var opts agent.Options
	var standalone bool
	var group string
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent on this node",
		Long: `Run the agent on this node until SIGTERM. It logs JSON to stderr, and to journald when its socket is there.

Settings that change how it decides are in the config file; the flags say where things are on this machine.`,
		Example: `  # in the DaemonSet
  spillway agent --config=/etc/spillway/config.yaml --cgroup-root=/host/sys/fs/cgroup

  # on any Linux machine, without Kubernetes
  spillway agent --standalone`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := readConfig(&opts, standalone); err != nil {
				return err
			}
			var err error
			if opts.SocketGroup, err = groupID(group); err != nil {
				return err
			}
			opts.Version = version
			opts.SelfUID = os.Getenv("POD_UID")
			opts.Level = new(slog.LevelVar)
			opts.Level.Set(opts.Config.Log.Level.Level())
			opts.Logger, opts.Journal = newLogger(stderr, opts.JournalSocket, opts.Level)
			if opts.Journal != nil {
				defer opts.Journal.Close()
			}
			return runAgent(cmd.Context(), opts)
		},
	}
	f := c.Flags()
	agentFlags(f, &opts, &standalone)
	f.StringVar(&opts.Socket, "socket", status.DefaultSocket, "unix socket for status")
	f.StringVar(&group, "socket-group", "", "group, by name or number, whose members may ask on the socket too; only root may begin a maintenance run; empty: root alone")
	f.StringVar(&opts.MetricsListen, "metrics-listen", "", "address for /metrics and /healthz, such as 127.0.0.1:9464; empty: none")
	f.BoolVar(&opts.LockMemory, "lock-memory", true, "keep the agent's own memory from being reclaimed (CAP_IPC_LOCK), and its heap under the limit of its cgroup")
	return c
}

// groupID finds a group by its name or number; 0 for "".
func groupID(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	number := name
	if g, err := user.LookupGroup(name); err == nil {
		number = g.Gid
	}
	id, err := strconv.Atoi(number)
	if err != nil || id < 0 {
		return 0, fmt.Errorf("--socket-group %s: no such group, and no number; in a container give the number", name)
	}
	return id, nil
}

// agentFlags are those that say where things are on this machine.
func agentFlags(f *pflag.FlagSet, opts *agent.Options, standalone *bool) {
	f.StringVar(&opts.ConfigFile, "config", "", "config file, whose changes apply while the agent runs; without it every setting has its default")
	f.BoolVar(standalone, "standalone", false, "run without Kubernetes: show memory pressure and OOM kills of this machine, evict nothing")
	f.StringVar(&opts.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this node's Node object (default: $NODE_NAME)")
	f.StringVar(&opts.Kubeconfig, "kubeconfig", "", "kubeconfig file; without it the pod's service account is used")
	f.StringVar(&opts.EvictAs, "evict-kubeconfig", os.Getenv("SPILLWAY_EVICT_KUBECONFIG"), "kubeconfig file used for Eviction calls only, such as the kubelet's own; empty: the agent's own credentials (default: $SPILLWAY_EVICT_KUBECONFIG)")
	f.StringVar(&opts.PauseSwitch, "pause-configmap", "", `ConfigMap, as namespace/name, whose key "pause" stops all evictions while it is "true"; empty: none`)
	f.StringVar(&opts.CgroupRoot, "cgroup-root", "/sys/fs/cgroup", "where the node's cgroup file systems are mounted")
	f.StringVar(&opts.ProcRoot, "proc-root", "/proc", "where proc is mounted")
	f.StringVar(&opts.StateDir, "state-dir", agent.DefaultStateDir, "folder for what must survive a restart (ledger.db) and for the recording")
	f.StringVar(&opts.BTF, "btf", "", "BTF file for the OOM tracer on kernels without /sys/kernel/btf/vmlinux")
	f.StringVar(&opts.Kmsg, "kmsg", kmsg.DefaultPath, "the kernel's log, which tells of OOM kills where BPF cannot be used")
	f.StringVar(&opts.JournalSocket, "journal-socket", "/run/systemd/journal/socket", "journald's native socket; not used when it is not there")
}

// readConfig reads the config file that the flags name.
func readConfig(opts *agent.Options, standalone bool) (err error) {
	opts.Config = config.Default()
	if opts.ConfigFile != "" {
		if opts.Config, err = config.Load(opts.ConfigFile, kube.ParseSelector); err != nil {
			return err
		}
	}
	if standalone {
		opts.Config.Mode = config.Standalone
	}
	return nil
}

// runAgent makes the agent anew when changed settings ask for it.
func runAgent(ctx context.Context, opts agent.Options) error {
	for {
		a, err := agent.New(opts)
		if err != nil {
			return err
		}
		err = a.Run(ctx)
		var changed *agent.ConfigChanged
		if !errors.As(err, &changed) {
			return err
		}
		opts.Logger.Info("the agent is made anew", "keys", changed.Keys)
		opts.Config = changed.Config
		opts.Level.Set(opts.Config.Log.Level.Level())
	}
}

// newLogger logs JSON to stderr, and to journald as well from when it listens; not twice when stderr is its stream anyway. The
// handler for journald is nil where there is none to follow.
func newLogger(stderr io.Writer, socket string, level slog.Leveler) (*slog.Logger, *journal.Handler) {
	text := slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level})
	native, err := journal.New(socket)
	if err != nil {
		log := slog.New(text)
		log.Warn("journald is not used", "error", err)
		return log, nil
	}
	native = native.WithLevel(level)
	err = native.Check() // an error is named by the agent, which looks again
	if f, ok := stderr.(*os.File); ok && journal.Receives(f) {
		if err == nil {
			return slog.New(native), native
		}
		_ = native.Close() // what comes later would be there twice
		return slog.New(text), nil
	}
	return slog.New(slog.NewMultiHandler(text, native)), native
}
