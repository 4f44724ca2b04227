package kmsg

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	const head = "3,1203,5000001,-;"
	for name, tc := range map[string]struct {
		in   string
		want *Record
	}{
		"kill at a limit, 6.x": {
			head + "Memory cgroup out of memory: Killed process 4711 (java) total-vm:1048576kB, anon-rss:65536kB, file-rss:4kB, shmem-rss:8kB, UID:1000 pgtables:180kB oom_score_adj:985\n SUBSYSTEM=x\n",
			&Record{Kill: &Kill{PID: 4711, Comm: "java", Memcg: true, Anon: 64 << 20, File: 4 << 10, Shmem: 8 << 10, Details: true, UID: 1000, PageTables: 180 << 10, OOMScoreAdj: 985}},
		},
		"kill of the node, 5.4": {
			head + "Out of memory: Killed process 1 (a (b) c) total-vm:1kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:4kB oom_score_adj:-998",
			&Record{Kill: &Kill{PID: 1, Comm: "a (b) c", Global: true, Anon: 1 << 10, Details: true, PageTables: 4 << 10, OOMScoreAdj: -998}},
		},
		"the task that asked": {
			head + "Out of memory (oom_kill_allocating_task): Killed process 9 (x) total-vm:1kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB",
			&Record{Kill: &Kill{PID: 9, Comm: "x", Global: true, Anon: 1 << 10}},
		},
		"4.19": {
			head + "Killed process 9 (x) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:0kB",
			&Record{Kill: &Kill{PID: 9, Comm: "x", Anon: 2 << 10, File: 3 << 10}},
		},
		"a name that plays tricks": {
			head + `Memory cgroup out of memory: Killed process 9 (\x1b) total-vm:1kB) total-vm:7kB, anon-rss:2kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:4kB oom_score_adj:0`,
			&Record{Kill: &Kill{PID: 9, Comm: "\x1b) total-vm:1kB", Memcg: true, Anon: 2 << 10, Details: true, PageTables: 4 << 10}},
		},
		"cause, a cgroup": {
			head + "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/kubepods/poda,task_memcg=/kubepods/poda/c,task=a,b,pid=12,uid=7",
			&Record{Cause: &Cause{Constraint: "CONSTRAINT_MEMCG", OOMCgroup: "/kubepods/poda", TaskCgroup: "/kubepods/poda/c", Comm: "a,b", PID: 12, UID: 7}},
		},
		"cause, the node": {
			head + "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/system.slice/x.service,task=x,pid=12,uid=0",
			&Record{Cause: &Cause{Constraint: "CONSTRAINT_NONE", TaskCgroup: "/system.slice/x.service", Comm: "x", PID: 12}},
		},
		"group": {
			head + "Tasks in /kubepods/poda/c are going to be killed due to memory.oom.group set",
			&Record{Group: "/kubepods/poda/c"},
		},
		"a process wrote it":   {"12,5,1,-;Out of memory: Killed process 1 (a) total-vm:1kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB", nil},
		"another line":         {"6,5,1,-;eth0: link is up", nil},
		"words in another one": {"6,5,1,-;foo said: Killed process 1 (a) total-vm:1kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB", nil},
		"no sizes":             {head + "Out of memory: Killed process 1 (a)", nil},
		"process 0":            {head + "Out of memory: Killed process 0 (a) total-vm:1kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB", nil},
		"size too big":         {head + "Out of memory: Killed process 1 (a) total-vm:1kB, anon-rss:99999999999999999999kB, file-rss:0kB, shmem-rss:0kB", nil},
		"cause without a pid":  {head + "oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/,task=x,uid=0", nil},
		"cause cut off":        {head + "oom-kill:constraint=CONSTRAINT_NONE", nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, ok, err := parse([]byte(tc.in))
			if err != nil || ok != (tc.want != nil) {
				t.Fatalf("%+v, %v, %v", r, ok, err)
			}
			if !ok {
				return
			}
			tc.want.Seq, tc.want.At = 1203, 5*time.Second+time.Microsecond
			if d := cmp.Diff(*tc.want, r); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	for _, in := range []string{"", "no head", "3,x,1,-;a", "3,1;a", "3,1,99999999999999999999,-;a", "-3,1,1,-;a"} {
		if _, _, err := parse([]byte(in)); err == nil {
			t.Errorf("%q is a record", in)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"3,1,5,-;Memory cgroup out of memory: Killed process 4711 (java) total-vm:1kB, anon-rss:6kB, file-rss:4kB, shmem-rss:8kB, UID:1000 pgtables:180kB oom_score_adj:985",
		"3,1,5,-;Killed process 1, UID 0, (name) total-vm:1kB, anon-rss:6kB, file-rss:4kB",
		"6,1,5,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/a\\x5cx,task_memcg=/a/b,task=x,pid=1,uid=2",
		"3,1,5,c;Tasks in /a are going to be killed due to memory.oom.group set\n SEQNUM=1",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, ok, err := parse(data)
		if ok && err != nil {
			t.Fatalf("record and error %v", err)
		}
		set := 0
		if r.Kill != nil {
			set++
			if r.Kill.PID == 0 {
				t.Fatal("process 0")
			}
		}
		if r.Cause != nil {
			set++
			if r.Cause.PID == 0 {
				t.Fatal("process 0")
			}
		}
		if r.Group != "" {
			set++
			if !strings.HasPrefix(r.Group, "/") {
				t.Fatalf("group %q", r.Group)
			}
		}
		if ok && (set != 1 || r.At < 0) {
			t.Fatalf("%+v", r)
		}
	})
}
