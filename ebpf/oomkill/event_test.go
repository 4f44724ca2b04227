package oomkill

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func encode(t testing.TB, r oomkillEvent) []byte {
	t.Helper()
	raw, err := binary.Append(nil, binary.NativeEndian, &r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func name(s string) (c [16]int8) {
	for i := range min(len(s), len(c)) {
		c[i] = int8(s[i])
	}
	return c
}

func dirName(s string) (c [96]int8) {
	for i := range min(len(s), len(c)) {
		c[i] = int8(s[i])
	}
	return c
}

func sample() oomkillEvent {
	return oomkillEvent{
		Time: 5_000_000_001, StartTime: 4_000_000_000,
		CgroupV1: 11, CgroupV2: 12, TriggerCgroupV1: 13, TriggerCgroupV2: 14,
		AnonPages: 100, FilePages: 20, ShmemPages: 3, PageTableBytes: 8192,
		Pid: 41, Tid: 42, Uid: 1000, TriggerPid: 43, OomScoreAdj: -999, Known: knownBits,
		Comm: name("java"), ThreadComm: name("GC Thread#0"), TriggerComm: name("sh"),
		CgroupName: dirName("cri-containerd-" + strings.Repeat("a", 64) + ".scope"), ParentName: dirName(strings.Repeat("p", 96)),
	}
}

func TestParseEvent(t *testing.T) {
	full := func() *Event {
		return &Event{
			Time: 5*time.Second + 1, KnownVictim: true, KnownMemory: true,
			PID: 41, TID: 42, StartTime: 4 * time.Second, Comm: "java", ThreadComm: "GC Thread#0",
			UID: 1000, OOMScoreAdj: -999, AnonRSS: 409600, FileRSS: 81920, ShmemRSS: 12288, PageTables: 8192,
			CgroupName: "cri-containerd-" + strings.Repeat("a", 64) + ".scope", CgroupParent: strings.Repeat("p", 96),
			CgroupV1: 11, CgroupV2: 12, TriggerPID: 43, TriggerComm: "sh", TriggerCgroupV1: 13, TriggerCgroupV2: 14,
		}
	}
	tests := []struct {
		name string
		edit func(*oomkillEvent)
		want func(*Event)
		err  string
	}{
		{name: "everything", edit: func(*oomkillEvent) {}, want: func(*Event) {}},
		{name: "monotonic clock",
			edit: func(r *oomkillEvent) { r.Known &^= oomkillKnownKNOWN_BOOTTIME },
			want: func(e *Event) { e.Monotonic = true }},
		{name: "memory unknown",
			edit: func(r *oomkillEvent) {
				r.Known &^= oomkillKnownKNOWN_MEMORY
				r.AnonPages, r.FilePages, r.ShmemPages, r.PageTableBytes = 0, 0, 0, 0
			},
			want: func(e *Event) {
				e.KnownMemory = false
				e.AnonRSS, e.FileRSS, e.ShmemRSS, e.PageTables = 0, 0, 0, 0
			}},
		{name: "victim unknown",
			edit: func(r *oomkillEvent) { *r = oomkillEvent{Known: oomkillKnownKNOWN_BOOTTIME, Tid: 7} },
			want: func(e *Event) { *e = Event{TID: 7} }},
		{name: "counter below zero",
			edit: func(r *oomkillEvent) { r.ShmemPages = -5 },
			want: func(e *Event) { e.ShmemRSS = 0 }},
		{name: "name with bytes that cannot be printed",
			edit: func(r *oomkillEvent) { r.Comm = name("\x1b[31m\xff\n") },
			want: func(e *Event) { e.Comm = "\x1b[31m\xff\n" }},
		{name: "name ends at the first NUL",
			edit: func(r *oomkillEvent) { r.Comm = name("a\x00b") },
			want: func(e *Event) { e.Comm = "a" }},
		{name: "name without NUL",
			edit: func(r *oomkillEvent) { r.Comm = name("0123456789abcdef") },
			want: func(e *Event) { e.Comm = "0123456789abcdef" }},
		{name: "unknown bit", edit: func(r *oomkillEvent) { r.Known |= 1 << 9 }, err: "known 0x207 has bits"},
		{name: "time beyond a duration", edit: func(r *oomkillEvent) { r.Time = math.MaxUint64 }, err: "time of 18446744073709551615 ns"},
		{name: "start time beyond a duration", edit: func(r *oomkillEvent) { r.StartTime = 1 << 63 }, err: "time of 9223372036854775808 ns"},
		{name: "pages beyond bytes", edit: func(r *oomkillEvent) { r.FilePages = 1 << 52 }, err: "RSS of 4503599627370496 pages"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := sample()
			tt.edit(&r)
			got, err := parseEvent(encode(t, r), 4096)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want it to say %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := full()
			tt.want(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	for _, n := range []int{0, 1, eventSize - 1, eventSize + 8} {
		if _, err := parseEvent(make([]byte, n), 4096); err == nil {
			t.Errorf("no error for a record of %d bytes", n)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add(encode(f, sample()))
	f.Add(make([]byte, eventSize))
	f.Add(bytes.Repeat([]byte{0xff}, eventSize))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := parseEvent(raw, 4096)
		if err != nil {
			if e != nil {
				t.Error("event and error")
			}
			return
		}
		if len(raw) != eventSize {
			t.Errorf("event of a record of %d bytes", len(raw))
		}
		if e.Time < 0 || e.StartTime < 0 {
			t.Errorf("negative time: %+v", e)
		}
		for _, bytes := range []uint64{e.AnonRSS, e.FileRSS, e.ShmemRSS} {
			if bytes%4096 != 0 || bytes > math.MaxInt64 {
				t.Errorf("RSS of %d bytes", bytes)
			}
		}
		for _, s := range []string{e.Comm, e.ThreadComm, e.TriggerComm, e.CgroupName, e.CgroupParent} {
			if len(s) > 96 || strings.Contains(s, "\x00") {
				t.Errorf("name %q", s)
			}
		}
	})
}
