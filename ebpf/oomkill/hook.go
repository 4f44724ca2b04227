package oomkill

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// victimArg is what the tracepoint passes to its probes.
type victimArg int

const (
	argUnknown victimArg = iota
	argTask              // struct task_struct *, and more
	argPID               // int
)

// markVictimArg reads the prototype of oom:mark_victim from the kernel's BTF.
// Versions do not tell: the task came in 6.9 (72ba14deb40a) and was backported.
func markVictimArg(kernel *btf.Spec) (victimArg, error) {
	var typedef *btf.Typedef
	err := kernel.TypeByName("btf_trace_mark_victim", &typedef)
	if errors.Is(err, btf.ErrNotFound) {
		return argUnknown, nil
	}
	if err != nil {
		return argUnknown, fmt.Errorf("find btf_trace_mark_victim: %w", err)
	}
	ptr, ok := btf.UnderlyingType(typedef).(*btf.Pointer)
	if !ok {
		return argUnknown, nil
	}
	proto, ok := ptr.Target.(*btf.FuncProto)
	// The first parameter is the probe's private data.
	if !ok || len(proto.Params) < 2 {
		return argUnknown, nil
	}
	switch arg := btf.UnderlyingType(proto.Params[1].Type).(type) {
	case *btf.Pointer:
		if s, ok := btf.UnderlyingType(arg.Target).(*btf.Struct); ok && s.Name == "task_struct" {
			return argTask, nil
		}
	case *btf.Int:
		return argPID, nil
	}
	return argUnknown, nil
}

// hook is one way to be called at the tracepoint.
type hook struct {
	name    string // what Hook() answers
	program string // in the object
	// prepare sets the object's variables; nil when there is nothing to set.
	prepare func(*ebpf.CollectionSpec) error
	attach  func(*ebpf.Program) (link.Link, error)
}

// Never written to.
var (
	tpBTF = hook{
		name:    "tp_btf/mark_victim",
		program: oomkillProgTpBtfTask,
		attach: func(p *ebpf.Program) (link.Link, error) {
			return link.AttachTracing(link.TracingOptions{Program: p})
		},
	}
	rawTask = hook{name: "raw_tp/mark_victim", program: oomkillProgRawTpTask, attach: attachRaw}
	rawPID  = hook{name: "raw_tp/mark_victim", program: oomkillProgRawTpPid, attach: attachRaw}
	classic = hook{
		name:    "tracepoint/oom/mark_victim",
		program: oomkillProgTracepointPid,
		prepare: setPIDOffset,
		attach: func(p *ebpf.Program) (link.Link, error) {
			return link.Tracepoint("oom", "mark_victim", p, nil)
		},
	}
)

func attachRaw(p *ebpf.Program) (link.Link, error) {
	return link.AttachRawTracepoint(link.RawTracepointOptions{Name: "mark_victim", Program: p})
}

// hooksFor lists the hooks that can work, best first: tp_btf has its target
// checked by the kernel, and the two that do not need tracefs come before the one
// that does.
func hooksFor(arg victimArg) []hook {
	switch arg {
	case argTask:
		return []hook{tpBTF, rawTask, classic}
	case argPID:
		return []hook{rawPID, classic}
	default:
		return []hook{classic}
	}
}

func setPIDOffset(spec *ebpf.CollectionSpec) error {
	format, err := readFormat()
	if err != nil {
		return err
	}
	offset, err := pidOffset(format)
	if err != nil {
		return err
	}
	if err := spec.Variables[oomkillVarPidOffset].Set(offset); err != nil {
		return fmt.Errorf("set %s: %w", oomkillVarPidOffset, err)
	}
	return nil
}

// readFormat reads the tracepoint's format file from the first tracefs that is
// mounted (Documentation/trace/events.rst).
func readFormat() ([]byte, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find tracefs: %w", err)
	}
	// An automount below debugfs shows up in mountinfo only once it is used.
	for _, dir := range append(tracefsMounts(mounts), "/sys/kernel/debug/tracing") {
		format, err := os.ReadFile(filepath.Join(dir, "events/oom/mark_victim/format"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read format of mark_victim: %w", err)
		}
		return format, nil
	}
	return nil, &UnsupportedError{
		Feature: "tracepoint oom/mark_victim",
		Needs:   "tracefs mounted at /sys/kernel/tracing",
		Remedy:  "mount the host's /sys/kernel/tracing into the container",
	}
}

// tracefsMounts lists the mount points of whole tracefs file systems in
// mountinfo (proc(5)).
func tracefsMounts(mountinfo []byte) []string {
	var dirs []string
	for line := range strings.Lines(string(mountinfo)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "tracefs ") && len(fields) >= 5 && fields[3] == "/" {
			dirs = append(dirs, fields[4])
		}
	}
	return dirs
}

// pidOffset finds the pid in a tracepoint's format file. It is 8 on most
// kernels; real-time patches put more fields before it.
func pidOffset(format []byte) (uint32, error) {
	scanner := bufio.NewScanner(bytes.NewReader(format))
	for scanner.Scan() {
		declaration, rest, ok := strings.Cut(strings.TrimSpace(scanner.Text()), ";")
		if !ok || declaration != "field:int pid" {
			continue
		}
		var offset, size uint64
		for part := range strings.SplitSeq(rest, ";") {
			key, value, _ := strings.Cut(strings.TrimSpace(part), ":")
			var err error
			switch key {
			case "offset":
				offset, err = strconv.ParseUint(value, 10, 16)
			case "size":
				size, err = strconv.ParseUint(value, 10, 16)
			}
			if err != nil {
				return 0, fmt.Errorf("parse format of mark_victim: %w", err)
			}
		}
		if size != 4 || offset < 8 {
			return 0, fmt.Errorf("parse format of mark_victim: pid has offset %d and size %d", offset, size)
		}
		return uint32(offset), nil
	}
	if err := scanner.Err(); err != nil {
		return 0, fmt.Errorf("parse format of mark_victim: %w", err)
	}
	return 0, fmt.Errorf("parse format of mark_victim: no field pid in %q", format)
}
