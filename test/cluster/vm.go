package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/test/cluster/node"
	"spillway/test/cluster/pki"
	"spillway/test/vm"
)

// Defaults of VMOptions.
const (
	DefaultVMName      = "node2"
	DefaultVMMemoryMiB = 6144
)

// Addresses of virtual machines.
const (
	apiServerURL = "https://10.96.0.1:443"
	nodeGateway  = "192.168.77.2" // the machine's own node, where the API server is
	guestPort    = 4194
	mostVMs      = 8
)

// A boot that does not come to the guest's answer is repeated, see vm.Boots.
const bootTimeout = 45 * time.Second

// VMOptions describe a node in a virtual machine. The zero value is a working one.
type VMOptions struct {
	// Name is the node's name; empty means node2.
	Name string
	// Kernel defaults to Debian's 6.1. The machine has pure cgroup v2.
	Kernel vm.Kernel
	// MemoryMiB is taken from the machine at once; default 6144. CPUs default to 2.
	MemoryMiB, CPUs int
	// Margin is how far under the memory available in the machine its kubelet's hard threshold is set, in bytes;
	// 0 means 2 GiB.
	Margin int64
	// SystemReserved, KubeReserved and KubeletExtra are those of Options.
	SystemReserved, KubeReserved map[string]string
	KubeletExtra                 map[string]any
	// ReadyTimeout bounds the time from the start of QEMU to the node being Ready; 0 means 3 min.
	ReadyTimeout time.Duration
}

func (o *VMOptions) complete() error {
	if o.Name == "" {
		o.Name = DefaultVMName
	}
	if !regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`).MatchString(o.Name) || o.Name == nodeName {
		return fmt.Errorf("virtual machine's name %q: want at most 32 lower-case letters, digits and dashes, and not %s", o.Name, nodeName)
	}
	if o.Kernel == "" {
		o.Kernel = vm.Kernel6_1
	}
	if o.MemoryMiB == 0 {
		o.MemoryMiB = DefaultVMMemoryMiB
	}
	if o.CPUs == 0 {
		o.CPUs = 2
	}
	if o.Margin == 0 {
		o.Margin = DefaultMargin
	}
	if o.ReadyTimeout == 0 {
		o.ReadyTimeout = 3 * time.Minute
	}
	if o.MemoryMiB < 1536 || o.CPUs < 1 || o.Margin < 0 || o.ReadyTimeout < 0 {
		return fmt.Errorf("virtual machine %s: want at least 1536 MiB, 1 CPU, and no negative margin or time", o.Name)
	}
	return nil
}

// VM is a node of the cluster in a virtual machine with pure cgroup v2. QEMU is a child of the cluster's supervisor and
// ends with it. The machine lies in the network of the cluster's nodes; pods in it have addresses that every node
// reaches.
type VM struct {
	cluster *Cluster
	info    vmInfo
	guest   vm.Client
}

// vmInfo is kept in the run folder, for later callers.
type vmInfo struct {
	Options       VMOptions `json:"options"`
	IP            string    `json:"ip"`
	PodSubnet     string    `json:"podSubnet"`
	HardThreshold int64     `json:"hardThreshold"`
}

// VMLog is the component name under which QEMU's own output is logged, VMConsole that of what the guest's kernel says.
func VMLog(name string) string     { return "vm-" + name }
func VMConsole(name string) string { return "vm-" + name + "-console" }

func (r Run) vmDir(name string) string  { return r.path("vm", name) }
func (r Run) vmInfo(name string) string { return filepath.Join(r.vmDir(name), "vm.json") }

// AddVM boots a virtual machine and returns when its node is Ready. The images that the cluster was given so far are in
// it. An error shows the last lines of the console; nothing stays behind then but the logs.
func (c *Cluster) AddVM(ctx context.Context, o VMOptions) (*VM, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := vm.Install(ctx, c.progress); err != nil {
		return nil, err
	}
	facts, err := c.Facts(ctx)
	if err != nil {
		return nil, err
	}
	v, err := c.place(o, facts)
	if err != nil {
		return nil, err
	}
	request, err := v.prepare(ctx, facts.Programs)
	if err != nil {
		return nil, fmt.Errorf("virtual machine %s: %w", o.Name, err)
	}
	if err := v.boot(ctx, request); err != nil {
		return nil, err
	}
	return v, nil
}

// boot lets the machine join, and takes it down when it does not.
func (v *VM) boot(ctx context.Context, request VMRequest) error {
	begin, o := time.Now(), v.info.Options
	limited, cancel := context.WithTimeoutCause(ctx, o.ReadyTimeout, fmt.Errorf("not ready after %s", o.ReadyTimeout))
	defer cancel()
	if err := v.join(limited, request, begin); err != nil {
		err = fmt.Errorf("virtual machine %s: %w; last lines of its console:\n%s", o.Name, err, v.Console(25))
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return errors.Join(err, v.Down(down))
	}
	fmt.Fprintf(v.cluster.progress, "node %s (kernel %s, cgroup v2) is ready after %.1f s\n", o.Name, o.Kernel, time.Since(begin).Seconds())
	return nil
}

// place chooses the first free address.
func (c *Cluster) place(o VMOptions, facts Facts) (*VM, error) {
	for i := range mostVMs {
		ip := fmt.Sprintf("192.168.77.%d", 10+i)
		if slices.ContainsFunc(facts.VMs, func(f VMFacts) bool { return f.Name == o.Name }) {
			return nil, fmt.Errorf("virtual machine %s: there is one of that name", o.Name)
		}
		if !slices.ContainsFunc(facts.VMs, func(f VMFacts) bool { return f.IP == ip }) {
			return c.vm(vmInfo{Options: o, IP: ip, PodSubnet: fmt.Sprintf("10.88.%d.0/24", 10+i)}), nil
		}
	}
	return nil, fmt.Errorf("virtual machine %s: there are %d already", o.Name, mostVMs)
}

func (c *Cluster) vm(info vmInfo) *VM {
	return &VM{cluster: c, info: info, guest: vm.Client{Address: net.JoinHostPort(info.IP, strconv.Itoa(guestPort)), Dial: c.run.dial}}
}

// VM finds a virtual machine that was added by this process or another.
func (c *Cluster) VM(ctx context.Context, name string) (*VM, error) {
	all, err := c.VMs(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		if v.NodeName() == name {
			return v, nil
		}
	}
	return nil, fmt.Errorf("no virtual machine %s in cluster %s", name, c.name)
}

// VMs lists all that were added and not taken down.
func (c *Cluster) VMs(ctx context.Context) ([]*VM, error) {
	facts, err := c.Facts(ctx)
	if err != nil {
		return nil, err
	}
	var all []*VM
	for _, f := range facts.VMs {
		b, err := os.ReadFile(c.run.vmInfo(f.Name))
		if errors.Is(err, os.ErrNotExist) {
			continue // it is just being made
		}
		if err != nil {
			return nil, fmt.Errorf("read virtual machine: %w", err)
		}
		var info vmInfo
		if err := json.Unmarshal(b, &info); err != nil {
			return nil, fmt.Errorf("parse %s: %w", c.run.vmInfo(f.Name), err)
		}
		all = append(all, c.vm(info))
	}
	return all, nil
}

func (v *VM) node() node.Node {
	return node.Node{
		Name: v.info.Options.Name, IP: net.ParseIP(v.info.IP), SandboxImage: WorkloadImage,
		LowerOOMScores: true, AppArmor: true, CNI: node.RoutedCNI(v.info.PodSubnet),
	}
}

// prepare makes what QEMU boots.
func (v *VM) prepare(ctx context.Context, programs string) (VMRequest, error) {
	c, o := v.cluster, v.info.Options
	store, err := CacheDir()
	if err != nil {
		return VMRequest{}, err
	}
	kernel, err := o.Kernel.Fetch(ctx, store, c.progress)
	if err != nil {
		return VMRequest{}, err
	}
	dir := c.run.vmDir(o.Name)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755), os.RemoveAll(c.run.Log(VMConsole(o.Name)))); err != nil {
		return VMRequest{}, fmt.Errorf("make folder: %w", err)
	}
	guest, busybox, err := vm.Tools(ctx, store, dir, c.progress)
	if err != nil {
		return VMRequest{}, err
	}
	a := vm.NewInitramfs()
	boot := vm.Boot{Hostname: o.Name, Cgroup: vm.CgroupV2, Address: v.info.IP + "/24", Gateway: nodeGateway, Disk: true, Serve: guestPort}
	if err := a.Prepare(ctx, kernel, guest, busybox, boot, "virtio_pci", "virtio_net", "virtio_blk", "overlay", "bridge", "veth"); err != nil {
		return VMRequest{}, err
	}
	files := map[string]string{node.CNIBinDir + "/bridge": "/usr/lib/cni/bridge", node.CNIBinDir + "/host-local": "/usr/lib/cni/host-local", node.CNIBinDir + "/loopback": "/usr/lib/cni/loopback"}
	for _, p := range []string{"kubelet", "containerd", "containerd-shim-runc-v2", "ctr"} {
		files["/usr/bin/"+p] = filepath.Join(programs, p)
	}
	if files["/usr/bin/runc"], err = lookRoot("runc"); err != nil {
		return VMRequest{}, err
	}
	// With it containerd confines the containers.
	if files["/usr/bin/apparmor_parser"], err = vm.AppArmorParser(ctx, store, c.progress); err != nil {
		return VMRequest{}, err
	}
	for name, source := range files {
		if err := a.Program(ctx, name, source); err != nil {
			return VMRequest{}, err
		}
	}
	m := vm.Machine{
		Kernel: kernel.Image, Initrd: filepath.Join(dir, "initrd"), MemoryMiB: o.MemoryMiB, CPUs: o.CPUs, Preallocated: true,
		Serial: []string{c.run.Log(VMConsole(o.Name))}, Disks: []string{filepath.Join(dir, "disk")},
	}
	last := net.ParseIP(v.info.IP).To4()[3]
	m.Tap, m.MAC = fmt.Sprintf("tap%d", last), fmt.Sprintf("52:54:00:00:77:%02x", last)
	if err := vm.MakeDisk(ctx, m.Disks[0], 16<<10); err != nil {
		return VMRequest{}, err
	}
	return VMRequest{Name: o.Name, IP: v.info.IP, PodSubnet: v.info.PodSubnet, Machine: m}, a.WriteFile(m.Initrd)
}

// join boots the machine, starts containerd and the kubelet in it and waits for its node.
func (v *VM) join(ctx context.Context, request VMRequest, begin time.Time) error {
	c, n := v.cluster, v.node()
	step := func(what string) {
		fmt.Fprintf(c.progress, "%5.1f s  %s: %s\n", time.Since(begin).Seconds(), n.Name, what)
	}
	step("boot")
	for boot := 1; ; boot++ {
		err := v.wake(ctx, request)
		if err == nil {
			break
		}
		if boot == vm.Boots || ctx.Err() != nil {
			return err
		}
		step(fmt.Sprintf("boot again: %v; last line of its console: %s", err, v.Console(1)))
		if _, err := c.run.control(ctx, http.MethodPost, ControlVMDown, VMRequest{Name: request.Name}); err != nil {
			return err
		}
	}
	if err := os.Remove(request.Machine.Initrd); err != nil { // it is in the machine's memory now
		return err
	}
	step("containerd, images")
	files, err := v.files()
	if err != nil {
		return err
	}
	// File systems with statistics, which the eviction manager wants to have.
	for _, dir := range []string{"/var/lib/kubelet", "/var/lib/containerd"} {
		if err := v.run(ctx, "mkdir", "-p", dir); err != nil {
			return err
		}
		if err := v.run(ctx, "mount", "-t", "tmpfs", "-o", "size=2g,mode=755", "tmpfs", dir); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := v.guest.WriteFile(ctx, name, files[name]); err != nil {
			return err
		}
	}
	if err := v.guest.Start(ctx, "containerd", "containerd", "--config="+node.ContainerdConfig); err != nil {
		return err
	}
	if err := v.poll(ctx, "containerd", "containerd to answer", func(ctx context.Context) error {
		return v.run(ctx, "ctr", "version")
	}); err != nil {
		return err
	}
	images, err := c.run.images()
	if err != nil {
		return err
	}
	for _, image := range images {
		if err := v.LoadImage(ctx, image); err != nil {
			return err
		}
	}
	step("kubelet")
	_, err = v.SetMargin(ctx, v.info.Options.Margin)
	return err
}

// wake boots the machine and waits until the guest answers.
func (v *VM) wake(ctx context.Context, request VMRequest) error {
	if _, err := v.cluster.run.control(ctx, http.MethodPost, ControlVMUp, request); err != nil {
		return err
	}
	if err := v.save(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("not up after %s", bootTimeout))
	defer cancel()
	return v.poll(ctx, "", "the guest to answer", func(ctx context.Context) error {
		_, err := v.guest.Memory(ctx)
		return err
	})
}

func (v *VM) run(ctx context.Context, argv ...string) error {
	_, err := v.guest.Exec(ctx, nil, argv...)
	return err
}

func (v *VM) files() (map[string][]byte, error) {
	cert, err1 := os.ReadFile(filepath.Join(v.cluster.run.PKI(), "ca.crt"))
	key, err2 := os.ReadFile(filepath.Join(v.cluster.run.PKI(), "ca.key"))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	ca, err := pki.LoadAuthority(cert, key)
	if err != nil {
		return nil, err
	}
	return v.node().Files(ca, apiServerURL)
}

func (v *VM) save() error {
	b, err := json.Marshal(v.info)
	if err != nil {
		return fmt.Errorf("encode virtual machine: %w", err)
	}
	if err := WriteFileAtomic(v.cluster.run.vmInfo(v.info.Options.Name), b, 0o600); err != nil {
		return fmt.Errorf("write virtual machine: %w", err)
	}
	return nil
}

// poll repeats a check until it succeeds, the machine or the service ends, or the context does.
func (v *VM) poll(ctx context.Context, service, what string, check func(context.Context) error) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := check(try)
		cancel()
		if err == nil {
			return nil
		}
		facts, ferr := v.cluster.Facts(context.WithoutCancel(ctx))
		if ferr != nil {
			return fmt.Errorf("wait for %s: %w", what, ferr)
		}
		for _, f := range facts.VMs {
			if f.Name == v.NodeName() && f.Ended != "" {
				return fmt.Errorf("wait for %s: %s", what, f.Ended)
			}
		}
		if service != "" {
			state, serr := v.guest.Service(ctx, service)
			if serr == nil && !state.Running {
				return fmt.Errorf("wait for %s: %s ended (%s); its last lines:\n%s", what, service, state.Ended, v.Log(context.WithoutCancel(ctx), service, 15))
			}
		}
		select {
		case <-ctx.Done():
			err = fmt.Errorf("wait for %s: %w (last: %w)", what, context.Cause(ctx), err)
			if service != "" {
				err = fmt.Errorf("%w; last lines of %s:\n%s", err, service, v.Log(context.WithoutCancel(ctx), service, 15))
			}
			return err
		case <-tick.C:
		}
	}
}

// Down ends the machine and removes its node from the API.
func (v *VM) Down(ctx context.Context) error {
	c, name := v.cluster, v.NodeName()
	if _, err := c.run.control(ctx, http.MethodPost, ControlVMDown, VMRequest{Name: name}); err != nil {
		return err
	}
	errs := []error{os.RemoveAll(c.run.vmDir(name))}
	err := c.client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})
	if ignoreNotFound(err) != nil {
		errs = append(errs, fmt.Errorf("delete node %s: %w", name, err))
	}
	// Nobody is left to confirm their end.
	list, err := c.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name})
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list pods of node %s: %w", name, err))...)
	}
	now := int64(0)
	for _, p := range list.Items {
		err := c.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
		if ignoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("delete pod of node %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Console returns the last lines that the machine's kernel and first process wrote.
func (v *VM) Console(lines int) string {
	return vm.ConsoleTail(v.cluster.run.Log(VMConsole(v.NodeName())), lines)
}

// Log returns the last lines of containerd's or the kubelet's log, or a line that says why not.
func (v *VM) Log(ctx context.Context, service string, lines int) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	b, err := v.guest.ReadFile(ctx, "/var/log/"+service+".log", 256<<10)
	if err != nil {
		return err.Error() + "\n"
	}
	return lastLines(b, lines)
}

// Exec runs a program on the machine and returns its standard output.
func (v *VM) Exec(ctx context.Context, stdin io.Reader, argv ...string) (string, error) {
	return v.guest.Exec(ctx, stdin, argv...)
}
