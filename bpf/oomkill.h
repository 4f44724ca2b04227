/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What one mark of an OOM victim sends to user space. The Go side is generated
 * from the BTF of this struct; members are ordered so that nothing is padded.
 */
#ifndef SPILLWAY_BPF_OOMKILL_H
#define SPILLWAY_BPF_OOMKILL_H

#define OOMKILL_COMM_LEN 16
/* "cri-containerd-", 64 digits and ".scope" are 85. */
#define OOMKILL_NAME_LEN 96

/* Bits of event.known: a value that could not be read must not look like 0. */
enum known {
	/* time is CLOCK_BOOTTIME; without it, CLOCK_MONOTONIC. */
	KNOWN_BOOTTIME = 1 << 0,
	/* The victim's task was at hand; without it only tid is the victim's. */
	KNOWN_TASK = 1 << 1,
	/* The victim still had its address space; without it the four sizes say nothing. */
	KNOWN_MEMORY = 1 << 2,
};

struct event {
	__u64 time;       /* ns */
	__u64 start_time; /* ns, CLOCK_BOOTTIME; 0 unknown */

	/* kernfs ids, which are the inodes of the cgroup directories; 0 unknown.
	 * cgroup_v1: in the hierarchy of the v1 memory controller, 0 as well where
	 * the memory controller is not on v1. */
	__u64 cgroup_v1;
	__u64 cgroup_v2;
	__u64 trigger_cgroup_v1;
	__u64 trigger_cgroup_v2;

	__s64 anon_pages; /* per-CPU deltas left out, so it may be below 0 */
	__s64 file_pages;
	__s64 shmem_pages;
	__u64 page_table_bytes;

	/* Ids in the initial pid namespace. */
	__u32 pid; /* thread group */
	__u32 tid;
	__u32 uid; /* in the initial user namespace */
	__u32 trigger_pid;

	__s16 oom_score_adj;
	__u16 reserved;
	enum known known;

	char comm[OOMKILL_COMM_LEN];         /* of the thread group leader */
	char thread_comm[OOMKILL_COMM_LEN];  /* of the thread, as in the kernel's log */
	char trigger_comm[OOMKILL_COMM_LEN]; /* of the trigger's thread group leader */

	/* Directory names of the victim's cgroup in the hierarchy of the memory
	 * controller and of the one above it: they tell whose it was when the
	 * directories are gone before anybody looks. Empty: unknown, or the root. */
	char cgroup_name[OOMKILL_NAME_LEN];
	char parent_name[OOMKILL_NAME_LEN];
};

#endif
