package oomkill

import (
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const tracefs = "/sys/kernel/tracing"

// mountTracefs where there is none, until the test ends.
func mountTracefs(t testing.TB) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if len(tracefsMounts(mounts)) > 0 {
		return
	}
	if err := unix.Mount("tracefs", tracefs, "tracefs", 0, ""); err != nil {
		t.Skipf("tracefs is not mounted and cannot be: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(tracefs, 0); err != nil && err != unix.EBUSY {
			t.Errorf("unmount %s: %v", tracefs, err)
		}
	})
}

func TestMarkVictimArg(t *testing.T) {
	task := &btf.Pointer{Target: &btf.Struct{Name: "task_struct"}}
	private := btf.FuncParam{Type: &btf.Pointer{Target: &btf.Void{}}}
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	probe := func(params ...btf.Type) btf.Type {
		proto := &btf.FuncProto{Return: &btf.Void{}, Params: []btf.FuncParam{private}}
		for _, p := range params {
			proto.Params = append(proto.Params, btf.FuncParam{Type: p})
		}
		return &btf.Pointer{Target: proto}
	}
	tests := []struct {
		name string
		typ  btf.Type // of btf_trace_mark_victim; nil: absent
		want victimArg
	}{
		{"since 6.9", probe(task, &btf.Typedef{Name: "uid_t", Type: number}), argTask},
		{"task const", probe(&btf.Pointer{Target: &btf.Const{Type: task.Target}}), argTask},
		{"before 6.9", probe(number), argPID},
		{"typedef of the pid", probe(&btf.Typedef{Name: "pid_t", Type: number}), argPID},
		{"absent", nil, argUnknown},
		{"another pointer", probe(&btf.Pointer{Target: &btf.Struct{Name: "oom_control"}}), argUnknown},
		{"no argument", probe(), argUnknown},
		{"not a function", &btf.Pointer{Target: number}, argUnknown},
		{"not a pointer", number, argUnknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			types := []btf.Type{number}
			if tt.typ != nil {
				types = append(types, &btf.Typedef{Name: "btf_trace_mark_victim", Type: tt.typ})
			}
			builder, err := btf.NewBuilder(types, nil)
			if err != nil {
				t.Fatal(err)
			}
			spec, err := builder.Spec()
			if err != nil {
				t.Fatal(err)
			}
			got, err := markVictimArg(spec)
			if err != nil || got != tt.want {
				t.Errorf("%v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

const format510 = `name: mark_victim
ID: 412
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:int pid;	offset:8;	size:4;	signed:1;

print fmt: "pid=%d", REC->pid
`

func TestPIDOffset(t *testing.T) {
	tests := []struct {
		name, format string
		want         uint32
		err          string
	}{
		{"5.10", format510, 8, ""},
		{"more common fields", strings.ReplaceAll(format510, "pid;	offset:8", "pid;	offset:12"), 12, ""},
		{"no pid", strings.ReplaceAll(format510, "field:int pid;", "field:int tgid;"), 0, "no field pid"},
		{"pid of 8 bytes", strings.ReplaceAll(format510, "offset:8;	size:4", "offset:8;	size:8"), 0, "offset 8 and size 8"},
		{"no offset", strings.ReplaceAll(format510, "offset:8;", ""), 0, "offset 0 and size 4"},
		{"offset is no number", strings.ReplaceAll(format510, "offset:8;", "offset:x;"), 0, `parsing "x"`},
		{"offset too large", strings.ReplaceAll(format510, "offset:8;", "offset:65536;"), 0, "out of range"},
		{"empty", "", 0, "no field pid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := pidOffset([]byte(tt.format))
			if tt.err == "" {
				if err != nil || got != tt.want {
					t.Errorf("%d, %v, want %d", got, err, tt.want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want it to say %q", err, tt.err)
			}
		})
	}
}

func FuzzPIDOffset(f *testing.F) {
	f.Add([]byte(format510))
	f.Fuzz(func(t *testing.T, format []byte) {
		offset, err := pidOffset(format)
		if err == nil && (offset < 8 || offset > 65535) {
			t.Errorf("offset %d", offset)
		}
	})
}

func TestTracefsMounts(t *testing.T) {
	const mountinfo = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:12 / /sys/kernel/tracing rw,nosuid shared:9 - tracefs tracefs rw
31 22 0:12 /events /only/events rw - tracefs tracefs rw
32 22 0:13 / /sys/kernel/debug rw master:2 propagate_from:3 - debugfs debugfs rw
33 22 0:12 / /host/tracing rw - tracefs nodev rw
truncated - tracefs
`
	want := []string{"/sys/kernel/tracing", "/host/tracing"}
	if diff := cmp.Diff(want, tracefsMounts([]byte(mountinfo))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
