package oomkill

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// TestMalformedRecord has another BPF program write into the tracer's buffer:
// Run counts what it cannot parse and goes on to the next kill.
func TestMalformedRecord(t *testing.T) {
	tracer := openTracer(t, Options{})
	g := newMemoryCgroup(t)
	if counts, err := countsMemlock(); err != nil {
		t.Fatal(err)
	} else if counts {
		raiseMemlock(t)
	}
	const length = 8
	writer, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.SocketFilter,
		License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 0x4f4f4d),
			asm.StoreMem(asm.RFP, -length, asm.R0, asm.DWord),
			asm.LoadMapPtr(asm.R1, tracer.coll.Maps[oomkillMapEvents].FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -length),
			asm.Mov.Imm(asm.R3, length),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnRingbufOutput.Call(),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { writer.Close() })
	const records = 3
	for range records {
		// 14 bytes are the shortest packet that the kernel lets it run on.
		if ret, err := writer.Run(&ebpf.RunOptions{Data: make([]byte, 14)}); ret != 0 || err != nil {
			t.Fatalf("write record: %d, %v", int32(ret), err)
		}
	}
	events := follow(t, tracer)
	pid := g.oomKill(t, "alloc")
	checkVictim(t, g, next(t, events, pid), pid)
	if n := tracer.Malformed(); n != records {
		t.Errorf("Malformed %d, want %d", n, records)
	}
}

// raiseMemlock until the test ends.
func raiseMemlock(t *testing.T) {
	t.Helper()
	var old unix.Rlimit
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unlimited, &old); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &old, nil); err != nil {
			t.Error(err)
		}
	})
}
