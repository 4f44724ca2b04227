package supervisor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"spillway/test/cluster"
	"spillway/test/vm"
)

// virtual is a virtual machine and its place in the network.
type virtual struct {
	request   cluster.VMRequest
	component *component
}

// startVM connects a virtual machine to the nodes' network and starts it. Its memory is taken from this machine's, so
// the kubelet here stands still meanwhile and gets a new threshold, as far from what is available then as before.
func (s *Supervisor) startVM(ctx context.Context, r cluster.VMRequest) error {
	for _, v := range s.vms {
		if v.request.Name == r.Name || v.request.IP == r.IP {
			return fmt.Errorf("start machine %s: %s has its name or address", r.Name, v.request.Name)
		}
	}
	qemu, err := exec.LookPath(vm.QEMU)
	if err != nil {
		return fmt.Errorf("start machine %s: %w", r.Name, err)
	}
	if err := ip(ctx,
		"tuntap add dev "+r.Machine.Tap+" mode tap",
		"link set "+r.Machine.Tap+" master "+nodeBridge+" up",
		"route add "+r.PodSubnet+" via "+r.IP,
	); err != nil {
		return err
	}
	return s.withoutKubelet(ctx, func() error {
		c, err := start(s.run, s.programs, cluster.VMLog(r.Name), qemu, r.Machine.Args(), func(c *component) {
			s.log.Error("virtual machine ended", "machine", c.name, "error", c.err)
		})
		if err != nil {
			return err
		}
		s.vms = append(s.vms, &virtual{r, c})
		return c.awaitMemory(ctx, int64(r.Machine.MemoryMiB)<<20)
	})
}

// stopVM ends a virtual machine. One that is not there is no error.
func (s *Supervisor) stopVM(ctx context.Context, name string) error {
	i := slices.IndexFunc(s.vms, func(v *virtual) bool { return v.request.Name == name })
	if i < 0 {
		return nil
	}
	v := s.vms[i]
	return s.withoutKubelet(ctx, func() error {
		v.component.stop(2 * time.Second)
		s.vms = slices.Delete(s.vms, i, i+1)
		return ip(ctx, "route del "+v.request.PodSubnet+" via "+v.request.IP, "link del "+v.request.Machine.Tap)
	})
}

// withoutKubelet does what changes the machine's memory, and sets the kubelet's thresholds anew.
func (s *Supervisor) withoutKubelet(ctx context.Context, do func() error) error {
	ran := s.kubelet != nil
	if ran {
		if err := s.stopKubelet(); err != nil {
			return err
		}
	}
	err := do()
	if err == nil {
		err = s.setThresholds(s.facts.Margin)
	}
	if ran {
		if kubeletErr := s.startKubelet(ctx); err == nil {
			err = kubeletErr
		}
	}
	return err
}

func (s *Supervisor) vmFacts() []cluster.VMFacts {
	var all []cluster.VMFacts
	for _, v := range s.vms {
		f := cluster.VMFacts{Name: v.request.Name, IP: v.request.IP}
		select {
		case <-v.component.done:
			f.Ended = v.component.failure()
		default:
		}
		all = append(all, f)
	}
	return all
}

// awaitMemory waits until the program holds nearly that much.
func (c *component) awaitMemory(ctx context.Context, size int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, fmt.Errorf("%s does not get its %d MiB of memory", c.name, size>>20))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		// Fields of proc(5) statm are pages; the second is what is resident.
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.process.Process.Pid))
		if f := bytes.Fields(b); err == nil && len(f) > 1 {
			pages, err := strconv.ParseInt(string(f[1]), 10, 64)
			if err == nil && pages*int64(os.Getpagesize()) >= size {
				return nil
			}
		}
		select {
		case <-c.done:
			return fmt.Errorf("start virtual machine: %s", c.failure())
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
