package oomkill

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"
	"unsafe"
)

// Event is one OOM victim, as the kernel saw it after SIGKILL was sent and
// before the process has exited (mm/oom_kill.c, mark_oom_victim). A
// memory.oom.group kill gives one event per process. A process that was already
// dying may be marked too, and once more by each further thread that then asks for
// memory: PID and StartTime tell whether it is the same one.
//
// Process ids are those of the initial pid namespace. Names are raw: the process
// sets them, and any byte but NUL may occur. Quote them before showing them.
type Event struct {
	// Time since boot (CLOCK_BOOTTIME) of the mark; see Monotonic.
	Time time.Duration
	// Monotonic: the kernel has no bpf_ktime_get_boot_ns (5.8), and Time is
	// CLOCK_MONOTONIC, which leaves out time in suspend.
	Monotonic bool

	// KnownVictim: PID, StartTime, Comm, ThreadComm, UID, OOMScoreAdj and the
	// victim's cgroup ids were read. Without it only TID is of the victim: the
	// kernel named it by number, and it could not be found.
	KnownVictim bool
	// KnownMemory: AnonRSS, FileRSS, ShmemRSS and PageTables were read. Without
	// it they are 0 and say nothing.
	KnownMemory bool

	// PID is the victim's process (thread group). TID is the thread that the
	// kernel named; it differs when the group leader has already exited.
	PID, TID uint32
	// StartTime of the process since boot (CLOCK_BOOTTIME); 0 unknown.
	StartTime time.Duration
	// Comm is the name of the process (its thread group leader). ThreadComm is
	// that of the thread TID, which is the one in the kernel's log.
	Comm, ThreadComm string
	// UID is the real user id in the initial user namespace.
	UID         uint32
	OOMScoreAdj int16

	// Bytes. The kernel keeps the RSS counters per CPU and adds them up now and
	// then; they are off by up to a batch (at least 32 pages) for each CPU that
	// the process ran on.
	AnonRSS, FileRSS, ShmemRSS, PageTables uint64

	// CgroupV1 and CgroupV2 are kernfs ids (the inodes of the directories) of the
	// victim's cgroup in the v1 hierarchy of the memory controller and in the
	// unified hierarchy; 0 is unknown, and 1 is the unified root. CgroupV1 is
	// also 0 where the memory controller is not on v1: then CgroupV2 counts.
	CgroupV1, CgroupV2 uint64

	// CgroupName and CgroupParent are the names of the victim's directory in the hierarchy of the memory controller and
	// of the one above it, cut at 95 bytes; empty where that is the root, or not known.
	CgroupName, CgroupParent string

	// The process whose allocation ran into the limit, often the victim itself.
	TriggerPID                       uint32
	TriggerComm                      string
	TriggerCgroupV1, TriggerCgroupV2 uint64
}

const (
	eventSize = int(unsafe.Sizeof(oomkillEvent{}))
	knownBits = oomkillKnownKNOWN_BOOTTIME | oomkillKnownKNOWN_TASK | oomkillKnownKNOWN_MEMORY
)

// parseEvent parses one record of the ring buffer, struct event of bpf/oomkill.h.
func parseEvent(raw []byte, pageSize int) (*Event, error) {
	if len(raw) != eventSize {
		return nil, fmt.Errorf("parse oom event: %d bytes instead of %d", len(raw), eventSize)
	}
	var r oomkillEvent
	if _, err := binary.Decode(raw, binary.NativeEndian, &r); err != nil {
		return nil, fmt.Errorf("parse oom event: %w", err)
	}
	known := r.Known
	if known&^knownBits != 0 {
		return nil, fmt.Errorf("parse oom event: known %#x has bits that no program sets", known)
	}
	for _, ns := range []uint64{r.Time, r.StartTime} {
		if ns > math.MaxInt64 {
			return nil, fmt.Errorf("parse oom event: time of %d ns", ns)
		}
	}
	for _, pages := range []int64{r.AnonPages, r.FilePages, r.ShmemPages} {
		if pages > math.MaxInt64/int64(pageSize) {
			return nil, fmt.Errorf("parse oom event: RSS of %d pages", pages)
		}
	}
	return &Event{
		Time:            time.Duration(r.Time),
		Monotonic:       known&oomkillKnownKNOWN_BOOTTIME == 0,
		KnownVictim:     known&oomkillKnownKNOWN_TASK != 0,
		KnownMemory:     known&oomkillKnownKNOWN_MEMORY != 0,
		PID:             r.Pid,
		TID:             r.Tid,
		StartTime:       time.Duration(r.StartTime),
		Comm:            text(r.Comm[:]),
		ThreadComm:      text(r.ThreadComm[:]),
		UID:             r.Uid,
		OOMScoreAdj:     r.OomScoreAdj,
		AnonRSS:         pagesToBytes(r.AnonPages, pageSize),
		FileRSS:         pagesToBytes(r.FilePages, pageSize),
		ShmemRSS:        pagesToBytes(r.ShmemPages, pageSize),
		PageTables:      r.PageTableBytes,
		CgroupV1:        r.CgroupV1,
		CgroupV2:        r.CgroupV2,
		CgroupName:      text(r.CgroupName[:]),
		CgroupParent:    text(r.ParentName[:]),
		TriggerPID:      r.TriggerPid,
		TriggerComm:     text(r.TriggerComm[:]),
		TriggerCgroupV1: r.TriggerCgroupV1,
		TriggerCgroupV2: r.TriggerCgroupV2,
	}, nil
}

// pagesToBytes takes a counter below 0 as 0, as the kernel does
// (percpu_counter_read_positive).
func pagesToBytes(pages int64, pageSize int) uint64 {
	return uint64(max(pages, 0)) * uint64(pageSize)
}

// text is what stands before the first NUL.
func text(c []int8) string {
	b := make([]byte, len(c))
	for i, v := range c {
		b[i] = byte(v)
	}
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name)
}
