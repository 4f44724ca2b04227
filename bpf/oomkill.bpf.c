// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Reports each OOM victim at oom:mark_victim: after SIGKILL was sent and before
 * the victim has exited, in the context of the task whose allocation failed. It
 * fires once per killed task also for a memory.oom.group kill, and for a task
 * that was already dying and is only marked (mm/oom_kill.c).
 *
 * The same body hangs on three hooks; user space loads the one that the kernel
 * can take. Kernels differ in what the tracepoint passes, and by backports not
 * by version: a task, or only its pid.
 *
 * Rebuild with "go generate ./ebpf/oomkill"; needs clang, llvm-strip and the
 * headers of libbpf.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "oomkill.h"

/* bpf_probe_read_kernel and the ring buffer are open to GPL programs only. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* User space sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
	__type(value, struct event);
} events SEC(".maps");

/* Events for which the ring buffer had no room. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/* Where the classic tracepoint's record has its pid, from its format file. */
const volatile __u32 pid_offset = 8;

/* Depth of a tree over 22 bits of pid (PID_MAX_LIMIT) with 16 slots a node. */
#define MAX_PID_TREE_DEPTH 6

/*
 * The task of a pid in the initial namespace, found as find_task_by_pid_ns does.
 * bpf_task_from_pid exists from 6.2 only, and the kernels that pass a pid are
 * older. The kernel runs tracepoint programs with preemption or RCU readers
 * held, and every step is a checked read, so a tree that changes underneath can
 * cost a miss but nothing worse; the final comparison excludes a wrong task.
 */
static __always_inline struct task_struct *task_by_pid(struct task_struct *current, __u32 nr)
{
	if (BPF_CORE_READ(current, pid) == nr)
		return current;
	if (!bpf_core_field_exists(struct xa_node, slots) ||
	    !bpf_core_field_exists(struct idr, idr_rt.xa_head) ||
	    !bpf_core_field_exists(struct task_struct, pid_links))
		return NULL;

	/* Level 0 of every pid is its number in the initial namespace. */
	struct pid *self = BPF_CORE_READ(current, thread_pid);
	if (!self)
		return NULL;
	struct upid *level0 = (void *)__builtin_preserve_access_index(&self->numbers);
	struct pid_namespace *ns = BPF_CORE_READ(level0, ns);
	if (!ns)
		return NULL;

	__u64 slots = bpf_core_field_size(struct xa_node, slots) / sizeof(void *);
	__u64 index = nr - BPF_CORE_READ(ns, idr.idr_base);
	__u64 entry = (__u64)BPF_CORE_READ(ns, idr.idr_rt.xa_head);

#pragma unroll
	for (int depth = 0; depth < MAX_PID_TREE_DEPTH; depth++) {
		/* Low bits 10 mark a node, 00 a pid (include/linux/xarray.h). */
		if ((entry & 3) != 2)
			break;
		struct xa_node *node = (void *)(entry - 2);
		__u64 slot = index >> (BPF_CORE_READ(node, shift) & 63);
		if (depth == 0 && slot >= slots)
			return NULL;
		slot &= slots - 1;
		void **base = (void *)__builtin_preserve_access_index(&node->slots);
		if (bpf_probe_read_kernel(&entry, sizeof(entry), base + slot))
			return NULL;
	}
	if (!entry || entry & 3)
		return NULL;

	struct pid *pid = (void *)entry;
	struct hlist_head *heads = (void *)__builtin_preserve_access_index(&pid->tasks);
	char *link = (char *)BPF_CORE_READ(heads, first);
	if (!link)
		return NULL;
	struct task_struct *task = (void *)(link - bpf_core_field_offset(struct task_struct, pid_links));
	return BPF_CORE_READ(task, pid) == nr ? task : NULL;
}

static __always_inline __u64 cgroup_id(struct cgroup *cgroup)
{
	/* A union of inode and generation before 5.5. */
	if (!cgroup || !bpf_core_field_exists(struct kernfs_node, id))
		return 0;
	return BPF_CORE_READ(cgroup, kn, id);
}

/* Returns the task's cgroup in the hierarchy of the memory controller. */
static __always_inline struct cgroup *read_cgroups(struct task_struct *task, __u64 *v1, __u64 *v2)
{
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	if (!set)
		return NULL;
	struct cgroup *unified = BPF_CORE_READ(set, dfl_cgrp);
	*v2 = cgroup_id(unified);

	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		return NULL; /* built without the memory controller */
	__u64 memory = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	struct cgroup_subsys_state **subsys = (void *)__builtin_preserve_access_index(&set->subsys);
	struct cgroup_subsys_state *css = NULL;
	if (bpf_probe_read_kernel(&css, sizeof(css), subsys + memory) || !css)
		return NULL;
	struct cgroup *cgroup = BPF_CORE_READ(css, cgroup);
	/* On the unified hierarchy, or on none. */
	if (BPF_CORE_READ(cgroup, root) == BPF_CORE_READ(unified, root))
		return unified;
	*v1 = cgroup_id(cgroup);
	return cgroup;
}

static __always_inline void read_names(struct event *e, struct cgroup *cgroup)
{
	if (!cgroup)
		return;
	struct cgroup_subsys_state *above = BPF_CORE_READ(cgroup, self.parent);
	if (!above)
		return; /* the root */
	const char *name = BPF_CORE_READ(cgroup, kn, name);
	bpf_probe_read_kernel_str(&e->cgroup_name, sizeof(e->cgroup_name), name);
	cgroup = BPF_CORE_READ(above, cgroup);
	if (!BPF_CORE_READ(above, parent))
		return;
	name = BPF_CORE_READ(cgroup, kn, name);
	bpf_probe_read_kernel_str(&e->parent_name, sizeof(e->parent_name), name);
}

static __always_inline bool read_rss(struct event *e, struct mm_struct *mm)
{
	struct mm_struct___atomic *atomic = (void *)mm;
	struct mm_struct___percpu *percpu = (void *)mm;

	if (bpf_core_field_exists(percpu->rss_stat[0].count)) {
		e->anon_pages = BPF_CORE_READ(percpu, rss_stat[MM_ANONPAGES].count);
		e->file_pages = BPF_CORE_READ(percpu, rss_stat[MM_FILEPAGES].count);
		e->shmem_pages = BPF_CORE_READ(percpu, rss_stat[MM_SHMEMPAGES].count);
		return true;
	}
	if (bpf_core_field_exists(atomic->rss_stat.count)) {
		e->anon_pages = BPF_CORE_READ(atomic, rss_stat.count[MM_ANONPAGES].counter);
		e->file_pages = BPF_CORE_READ(atomic, rss_stat.count[MM_FILEPAGES].counter);
		e->shmem_pages = BPF_CORE_READ(atomic, rss_stat.count[MM_SHMEMPAGES].counter);
		return true;
	}
	return false;
}

static __always_inline void read_victim(struct event *e, struct task_struct *task)
{
	e->pid = BPF_CORE_READ(task, tgid);
	e->tid = BPF_CORE_READ(task, pid);
	if (!e->pid)
		return; /* not a task that can be read */
	e->known |= KNOWN_TASK;
	if (bpf_core_field_exists(struct task_struct, start_boottime))
		e->start_time = BPF_CORE_READ(task, group_leader, start_boottime);
	e->uid = BPF_CORE_READ(task, real_cred, uid.val);
	e->oom_score_adj = BPF_CORE_READ(task, signal, oom_score_adj);
	BPF_CORE_READ_STR_INTO(&e->comm, task, group_leader, comm);
	BPF_CORE_READ_STR_INTO(&e->thread_comm, task, comm);
	read_names(e, read_cgroups(task, &e->cgroup_v1, &e->cgroup_v2));

	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	if (mm && read_rss(e, mm)) {
		e->known |= KNOWN_MEMORY;
		e->page_table_bytes = BPF_CORE_READ(mm, pgtables_bytes.counter);
	}
}

/* victim is NULL where the hook passes only the pid. */
static __always_inline int report(struct task_struct *victim, __u32 tid)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		__u32 zero = 0;
		__u64 *count = bpf_map_lookup_elem(&lost, &zero);
		if (count)
			__sync_fetch_and_add(count, 1);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));

	if (bpf_core_enum_value_exists(enum bpf_func_id___local, BPF_FUNC_ktime_get_boot_ns___local)) {
		e->time = bpf_ktime_get_boot_ns();
		e->known |= KNOWN_BOOTTIME;
	} else {
		e->time = bpf_ktime_get_ns();
	}

	struct task_struct *current = (void *)bpf_get_current_task();
	e->trigger_pid = BPF_CORE_READ(current, tgid);
	BPF_CORE_READ_STR_INTO(&e->trigger_comm, current, group_leader, comm);
	read_cgroups(current, &e->trigger_cgroup_v1, &e->trigger_cgroup_v2);

	if (!victim)
		victim = task_by_pid(current, tid);
	if (victim)
		read_victim(e, victim);
	else
		e->tid = tid;

	/* The reader sleeps: waking it now is the whole point. */
	bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);
	return 0;
}

SEC("tp_btf/mark_victim")
int tp_btf_task(__u64 *ctx)
{
	return report((struct task_struct *)ctx[0], 0);
}

SEC("raw_tp/mark_victim")
int raw_tp_task(__u64 *ctx)
{
	return report((struct task_struct *)ctx[0], 0);
}

SEC("raw_tp/mark_victim")
int raw_tp_pid(__u64 *ctx)
{
	return report(NULL, ctx[0]);
}

SEC("tracepoint/oom/mark_victim")
int tracepoint_pid(void *ctx)
{
	__s32 pid = 0;

	bpf_probe_read_kernel(&pid, sizeof(pid), ctx + pid_offset);
	return report(NULL, pid);
}
