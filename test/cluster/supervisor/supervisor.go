package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"golang.org/x/sys/unix"

	"spillway/test/cluster"
	"spillway/test/cluster/node"
)

// Supervisor owns the components of one cluster.
type Supervisor struct {
	run      cluster.Run
	programs string
	options  cluster.Options
	node     node.Node
	log      *slog.Logger
	say      io.Writer // what the caller of cluster.Up reads

	// kubeletMu orders requests about the nodes and guards kubelet, runtime, facts and vms.
	kubeletMu sync.Mutex
	kubelet   *component
	runtime   *component // nil: stopped
	facts     cluster.Facts
	vms       []*virtual

	client *kubernetes.Clientset

	mu         sync.Mutex   // guards components and failed
	components []*component // in start order
	failed     *component
	failure    chan struct{} // closed when a component ended by itself
}

// Main runs the supervisor for the run folder and the folder of programs in args, until it is told to stop.
func Main(args []string, stdout, stderr io.Writer) int {
	if len(args) != 2 {
		fmt.Fprintln(stderr, "supervise: want the run folder and the folder of programs")
		return 2
	}
	unix.CloseOnExec(lifelineFD)
	s := &Supervisor{
		run:      cluster.Run{Dir: args[0]},
		programs: args[1],
		log:      slog.New(slog.NewTextHandler(stderr, nil)),
		say:      stdout,
		failure:  make(chan struct{}),
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	signal.Ignore(syscall.SIGPIPE) // the caller may be gone while we still report
	ctx = s.watchLifeline(ctx, os.NewFile(lifelineFD, "lifeline"))
	err := s.serve(ctx)
	if err != nil && ctx.Err() == nil {
		s.log.Error("start", "error", err)
		b, _ := json.Marshal(err.Error()) // a string always encodes
		fmt.Fprintf(s.say, "%s%s\n", cluster.SayError, b)
	}
	s.shutdown()
	if err != nil && ctx.Err() == nil {
		return 1
	}
	return 0
}

// watchLifeline ends the context when the caller dies before it detached.
func (s *Supervisor) watchLifeline(ctx context.Context, lifeline *os.File) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		var b [1]byte
		n, _ := lifeline.Read(b[:])
		if n == 1 && b[0] == cluster.Detach {
			s.log.Info("detached")
			return
		}
		cancel(errors.New("the caller is gone"))
	}()
	return ctx
}

func (s *Supervisor) serve(ctx context.Context) error {
	b, err := os.ReadFile(s.run.Options())
	if err != nil {
		return fmt.Errorf("read options: %w", err)
	}
	if err := json.Unmarshal(b, &s.options); err != nil {
		return fmt.Errorf("parse options %s: %w", s.run.Options(), err)
	}
	lowerScores, err := mayLowerOOMScores()
	if err != nil {
		return err
	}
	s.node = node.Node{
		Name:           "node1",
		IP:             net.ParseIP(machineNodeIP),
		SandboxImage:   cluster.WorkloadImage,
		LowerOOMScores: lowerScores,
		CNI:            node.BridgeCNI(podSubnet),
	}
	s.facts = cluster.Facts{NodeName: s.node.Name, NodeIP: machineNodeIP, Programs: s.programs}
	if err := s.bringUp(ctx); err != nil {
		return err
	}
	ln, err := net.Listen("unix", s.run.Control())
	if err != nil {
		return fmt.Errorf("listen for requests: %w", err)
	}
	defer ln.Close()
	fmt.Fprintln(s.say, cluster.SayReady)
	return s.answer(ctx, ln)
}

// bringUp starts everything in an order that lets slow starts overlap.
func (s *Supervisor) bringUp(ctx context.Context) error {
	s.step("mounts, network, certificates")
	if err := mountNode(s.run); err != nil {
		return err
	}
	if err := setupNetwork(ctx); err != nil {
		return err
	}
	if err := s.writeIdentities(); err != nil {
		return err
	}
	s.step("etcd, kube-apiserver, containerd")
	if _, err := s.start("etcd", etcdArgs()); err != nil {
		return err
	}
	s.kubeletMu.Lock()
	err := s.startContainerd()
	s.kubeletMu.Unlock()
	if err != nil {
		return err
	}
	if err := s.poll(ctx, "etcd", "etcd to listen", listens("tcp", "127.0.0.1:2379")); err != nil {
		return err
	}
	if _, err := s.start("kube-apiserver", s.apiServerArgs()); err != nil {
		return err
	}
	if err := s.loadImages(ctx); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.run.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS, config.Burst = -1, -1
	if s.client, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	err = s.poll(ctx, "kube-apiserver", "the API server to be ready", func(ctx context.Context) error {
		return s.client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	if err != nil {
		return err
	}
	s.step("kube-controller-manager, kube-scheduler, kubelet")
	if _, err := s.start("kube-controller-manager", s.controllerManagerArgs()); err != nil {
		return err
	}
	if _, err := s.start("kube-scheduler", s.schedulerArgs()); err != nil {
		return err
	}
	if err := s.allowKubeletClient(ctx); err != nil {
		return err
	}
	s.kubeletMu.Lock()
	defer s.kubeletMu.Unlock()
	if err := s.setThresholds(s.options.Margin); err != nil {
		return err
	}
	if err := s.startKubelet(ctx); err != nil {
		return err
	}
	// Pods of the default namespace can start from here on.
	return s.poll(ctx, "kube-controller-manager", "the default service account", func(ctx context.Context) error {
		if _, err := s.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		_, err := s.client.CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
}

// allowKubeletClient lets the API server use the kubelet's API: logs, exec, proxy. A kubelet with webhook authorization
// asks for it.
func (s *Supervisor) allowKubeletClient(ctx context.Context) error {
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: kubeletUser},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:kubelet-api-admin"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: kubeletUser}},
	}
	return s.poll(ctx, "kube-apiserver", "role binding "+kubeletUser, func(ctx context.Context) error {
		_, err := s.client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

func (s *Supervisor) loadImages(ctx context.Context) error {
	if err := s.runtimeListens(ctx); err != nil {
		return err
	}
	for _, archive := range s.options.Images {
		cmd := exec.CommandContext(ctx, s.programs+"/ctr", "-a", node.ContainerdSocket, "-n", "k8s.io", "images", "import", archive)
		cmd.Env = cluster.NodeEnv(s.programs)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("import image %s: %w: %s", archive, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func (s *Supervisor) step(what string) {
	s.log.Info("start", "step", what)
	fmt.Fprintln(s.say, what)
}

func (s *Supervisor) start(name string, args []string) (*component, error) {
	c, err := start(s.run, s.programs, name, name, args, s.died)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.components = append(s.components, c)
	return c, nil
}

// died notes the first component that ended by itself. It is not started again: a test is to see it.
func (s *Supervisor) died(c *component) {
	s.log.Error("component ended", "component", c.name, "error", c.err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = c
		close(s.failure)
	}
}

func (s *Supervisor) failedComponent() *component {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// poll repeats a check until it succeeds, a component ends or the context does.
func (s *Supervisor) poll(ctx context.Context, component, what string, check func(context.Context) error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := check(try)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-s.failure:
			return fmt.Errorf("wait for %s: %s", what, s.failedComponent().failure())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w); last lines of %s:\n%s",
				what, context.Cause(ctx), err, component, cluster.Tail(s.run.Log(component), 15))
		case <-tick.C:
		}
	}
}

func listens(network, address string) func(context.Context) error {
	return func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// mayLowerOOMScores looks for CAP_SYS_RESOURCE among this process's capabilities.
func mayLowerOOMScores() (bool, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0, nil
}
