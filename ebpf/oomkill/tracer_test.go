package oomkill

import (
	"testing"
	"time"
)

func TestSingleKill(t *testing.T) {
	tracer := openTracer(t, Options{}, anyHook)
	g := newMemoryCgroup(t)
	events := follow(t, tracer)

	before := sinceBoot(t)
	pid := g.oomKill(t, "setuid")
	after := sinceBoot(t)

	e := next(t, events, pid)
	t.Logf("%s: %+v", tracer.Hook(), e)
	if e.Monotonic || e.Time < before || e.Time > after {
		t.Errorf("Time %v is not between %v and %v", e.Time, before, after)
	}
	if e.StartTime < before-time.Millisecond || e.StartTime > e.Time {
		t.Errorf("StartTime %v is not between %v and %v", e.StartTime, before, e.Time)
	}
	if !e.KnownVictim || !e.KnownMemory {
		t.Errorf("victim or its memory unknown")
	}
	if e.TID != e.PID {
		t.Errorf("TID %d of process %d", e.TID, e.PID)
	}
	if e.Comm != procName {
		t.Errorf("Comm %q, want %q", e.Comm, procName)
	}
	if e.UID != 12345 || e.OOMScoreAdj != 321 {
		t.Errorf("UID %d and OOMScoreAdj %d, want 12345 and 321", e.UID, e.OOMScoreAdj)
	}
	if e.AnonRSS < limit*8/10 || e.AnonRSS > limit*12/10 {
		t.Errorf("AnonRSS %d, want about the limit of %d", e.AnonRSS, limit)
	}
	if e.FileRSS == 0 || e.FileRSS > limit {
		t.Errorf("FileRSS %d of a process with a mapped binary", e.FileRSS)
	}
	if e.ShmemRSS > 1<<20 {
		t.Errorf("ShmemRSS %d of a process without any", e.ShmemRSS)
	}
	// At least one table of 8 bytes for each page taken.
	if e.PageTables < limit/4096*8/2 || e.PageTables > 4<<20 {
		t.Errorf("PageTables %d", e.PageTables)
	}
	if int(e.TriggerPID) != pid || e.TriggerComm != procName {
		t.Errorf("trigger %d %q, want the victim", e.TriggerPID, e.TriggerComm)
	}
	g.check(t, "victim", e.CgroupV1, e.CgroupV2)
	g.check(t, "trigger", e.TriggerCgroupV1, e.TriggerCgroupV2)
	if lost, err := tracer.Lost(); lost != 0 || err != nil {
		t.Errorf("Lost: %d, %v", lost, err)
	}
	if n := tracer.Malformed(); n != 0 {
		t.Errorf("Malformed: %d", n)
	}
}
