/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The part of the kernel's types that the programs in this directory read, and
 * nothing more. preserve_access_index makes clang record a CO-RE relocation for
 * each access, so offsets, order and missing members here mean nothing: the
 * loader takes them from the BTF of the kernel that runs. Where a layout has
 * changed between kernels there is one declaration per layout; what follows the
 * three underscores is not part of the name that is looked up.
 */
#ifndef SPILLWAY_BPF_KERNEL_H
#define SPILLWAY_BPF_KERNEL_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

typedef _Bool bool;
enum { false, true };

#define NULL ((void *)0)

/* include/uapi/linux/bpf.h */
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_RINGBUF 27
#define BPF_RB_FORCE_WAKEUP 2
enum bpf_func_id___local { BPF_FUNC_ktime_get_boot_ns___local = 125 };

/* include/linux/mm_types_task.h: the counters of an address space. */
#define MM_FILEPAGES 0
#define MM_ANONPAGES 1
#define MM_SHMEMPAGES 3

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	__s64 counter;
} atomic_long_t;

/* Up to 6.1: one atomic per counter. */
struct mm_rss_stat {
	atomic_long_t count[4];
};

struct mm_struct___atomic {
	struct mm_rss_stat rss_stat;
};

/* From 6.2 (f1a7941243c1): per-CPU deltas around a central count. */
struct percpu_counter {
	__s64 count;
};

struct mm_struct___percpu {
	struct percpu_counter rss_stat[4];
};

struct mm_struct {
	atomic_long_t pgtables_bytes;
};

struct kernfs_node {
	const char *name;
	__u64 id;
};

struct cgroup_root;

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
};

enum cgroup_subsys_id { memory_cgrp_id = 4 };

typedef struct {
	__u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct signal_struct {
	__s16 oom_score_adj;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

/* A node of the tree in which a pid namespace keeps its pids (since 4.20). */
struct xa_node {
	__u8 shift;
	void *slots[1];
};

struct xarray {
	void *xa_head;
};

struct idr {
	struct xarray idr_rt;
	__u32 idr_base;
};

struct pid_namespace {
	struct idr idr;
};

struct upid {
	struct pid_namespace *ns;
};

struct pid {
	struct hlist_head tasks[1];
	struct upid numbers[1];
};

struct task_struct {
	__s32 pid;
	__s32 tgid;
	__u64 start_boottime;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct hlist_node pid_links[1];
	const struct cred *real_cred;
	char comm[16];
	struct signal_struct *signal;
	struct css_set *cgroups;
	struct mm_struct *mm;
};

#pragma clang attribute pop

#endif
