// Package oomkill reports each process that the kernel's OOM killer marks, by a
// BPF program on the tracepoint oom:mark_victim. It reads the BTF of the kernel
// to choose the program, reports what it cannot do on this kernel as
// [UnsupportedError] or [PermissionError], and counts what it loses. It never
// mounts a file system, resolves a cgroup id or decides whose limit was hit.
package oomkill

//go:generate go tool bpf2go -target bpfel,bpfeb -type event -type known oomkill ../../bpf/oomkill.bpf.c -- -O2 -g -Wall -Werror
