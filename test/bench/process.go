package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// userHZ is the unit of the times in /proc/PID/stat: 1/100 s on every architecture that the kernel's user interface has
// (include/asm-generic/param.h).
const userHZ = 100

// process is what a process uses now.
type process struct {
	cpu            time.Duration // user and system time since its start
	rss, anon      uint64        // bytes
	files, threads int
}

func readProcess(pid int) (process, error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return process{}, err
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return process{}, err
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return process{}, err
	}
	p, err := parseProcess(string(stat), string(status))
	p.files = len(fds)
	return p, err
}

// parseProcess parses /proc/PID/stat and /proc/PID/status (proc_pid_stat(5), proc_pid_status(5)).
func parseProcess(stat, status string) (process, error) {
	var p process
	// The name in parentheses may hold anything; the state, field 3, comes after the last of them.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 18 {
		return p, fmt.Errorf("parse stat %q: %d fields after the name", stat, len(fields))
	}
	for _, f := range []string{fields[11], fields[12]} { // 14 utime, 15 stime
		ticks, err := strconv.ParseUint(f, 10, 63)
		if err != nil {
			return p, fmt.Errorf("parse stat %q: %w", stat, err)
		}
		p.cpu += time.Duration(ticks) * time.Second / userHZ
	}
	var err error
	if p.threads, err = strconv.Atoi(fields[17]); err != nil { // 20 num_threads
		return p, fmt.Errorf("parse stat %q: %w", stat, err)
	}
	for key, to := range map[string]*uint64{"VmRSS:": &p.rss, "RssAnon:": &p.anon} {
		if *to, err = kib(status, key); err != nil {
			return p, err
		}
	}
	return p, nil
}

// kib finds a line "Key: number kB" and returns it in bytes.
func kib(status, key string) (uint64, error) {
	for line := range strings.Lines(status) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == key && f[2] == "kB" {
			n, err := strconv.ParseUint(f[1], 10, 53)
			if err != nil {
				return 0, fmt.Errorf("parse status %q: %w", line, err)
			}
			return n << 10, nil
		}
	}
	return 0, fmt.Errorf("parse status: no line %q in kB", key)
}
