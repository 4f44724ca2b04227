package oomkill

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// UnsupportedError says which feature this kernel or node lacks and what would
// bring it.
type UnsupportedError struct {
	Feature string
	Needs   string
	Remedy  string // what an operator can do about it
	Lasting bool   // trying again is in vain until the process or the node starts anew
	Err     error  // may be nil
}

func (e *UnsupportedError) Error() string {
	s := "unsupported: " + e.Feature + ", needs " + e.Needs
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *UnsupportedError) Unwrap() error { return e.Err }

// PermissionError says that the kernel refused the tracer and why: a missing
// capability, or what else stands in the way of a process that has them all.
type PermissionError struct {
	// Missing capabilities, such as CAP_BPF; empty when none is.
	Missing []string
	// Reason when no capability is missing.
	Reason  string
	Remedy  string // what an operator can do about it
	Lasting bool   // trying again is in vain until the process starts anew
	Err     error
}

func (e *PermissionError) Error() string {
	why := e.Reason
	if len(e.Missing) > 0 {
		why = "needs " + strings.Join(e.Missing, " and ")
	}
	return fmt.Sprintf("not permitted: %s: %v", why, e.Err)
}

func (e *PermissionError) Unwrap() error { return e.Err }

// explain turns the kernel's errors into what an operator can act on.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		missing, capErr := missingCapabilities()
		if capErr != nil {
			return errors.Join(err, capErr)
		}
		if len(missing) > 0 {
			return &PermissionError{
				Missing: missing, Lasting: true, Err: err,
				Remedy: "add " + strings.Join(missing, " and ") + " to the container's capabilities",
			}
		}
	}
	if errors.Is(features.HaveMapType(ebpf.RingBuf), ebpf.ErrNotSupported) {
		return &UnsupportedError{
			Feature: "BPF ring buffer", Needs: "kernel 5.8", Remedy: "run a newer kernel", Lasting: true, Err: err,
		}
	}
	// Seen so on Debian 6.1 and 6.12; the file in securityfs that would say it is
	// seldom in a container.
	if errors.Is(features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnProbeReadKernel), ebpf.ErrNotSupported) {
		return &UnsupportedError{
			Feature: "reading kernel memory from BPF",
			Needs:   "kernel 5.5 without lockdown=confidentiality",
			Remedy:  "boot with lockdown=integrity, or live with the rung below",
			Lasting: true, // the level of lockdown can be raised, never lowered
			Err:     err,
		}
	}
	if errors.Is(err, errMemlock) {
		return &PermissionError{
			Missing: []string{"CAP_SYS_RESOURCE"}, Err: err,
			Remedy: "raise the memlock limit, or add CAP_SYS_RESOURCE to the container's capabilities",
		}
	}
	// The verifier answers EACCES as well, so only EPERM is a refusal here.
	if errors.Is(err, unix.EPERM) {
		if inUserNamespace() {
			return &PermissionError{
				Reason: "the capabilities hold in a user namespace only", Remedy: "run the pod with hostUsers: true", Lasting: true, Err: err,
			}
		}
		return &PermissionError{
			Reason: "all capabilities are there, so seccomp or a security module refuses it",
			Remedy: "allow bpf(2) in the container's seccomp profile and in the policy of AppArmor or SELinux", Err: err,
		}
	}
	return err
}

// refused explains what stands in the way of any program, without the kernel's types, whose reading takes time and memory: an
// agent that is refused asks again and again. nil: nothing does so far.
func refused() error {
	if lacksPrivilege() {
		return explain(unix.EPERM)
	}
	err := features.HaveMapType(ebpf.RingBuf)
	if !errors.Is(err, unix.EPERM) {
		return nil
	}
	if counts, countErr := countsMemlock(); countErr != nil || counts {
		return nil // a limit that is raised later, if it can be
	}
	return explain(fmt.Errorf("make BPF map: %w", unix.EPERM))
}

// errMemlock: BPF memory does not fit into RLIMIT_MEMLOCK, or so it must be.
var errMemlock = errors.New("RLIMIT_MEMLOCK cannot be raised, and kernels before 5.11 count BPF memory to it")

// countsMemlock is whether BPF memory goes to RLIMIT_MEMLOCK, as it did before
// 5.11. The kernel answers EPERM to that and to every other refusal, so it can
// only be told by the version.
func countsMemlock() (bool, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return false, fmt.Errorf("read kernel version: %w", err)
	}
	return before511(unix.ByteSliceToString(uts.Release[:])), nil
}

func before511(release string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major < 5 || major == 5 && minor < 11
}

// lacksPrivilege is whether every attempt must be refused.
func lacksPrivilege() bool {
	missing, err := missingCapabilities()
	return err != nil || len(missing) > 0 || inUserNamespace()
}

// missingCapabilities of the calling thread for loading and attaching a tracing
// program. CAP_BPF and CAP_PERFMON split off CAP_SYS_ADMIN in 5.8 (capabilities(7)).
func missingCapabilities() ([]string, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	have := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	if have(unix.CAP_SYS_ADMIN) {
		return nil, nil
	}
	// The kernel knows a capability when the bounding set can be asked for it.
	if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_BPF, 0, 0, 0); err != nil {
		return []string{"CAP_SYS_ADMIN"}, nil
	}
	var missing []string
	if !have(unix.CAP_BPF) {
		missing = append(missing, "CAP_BPF")
	}
	if !have(unix.CAP_PERFMON) {
		missing = append(missing, "CAP_PERFMON")
	}
	return missing, nil
}

// inUserNamespace is true unless all ids map to themselves (user_namespaces(7)).
func inUserNamespace() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	return strings.Join(strings.Fields(string(data)), " ") != "0 0 4294967295"
}
