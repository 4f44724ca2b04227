// Package meminfo reads what a machine has left for programs, for loads that fill it and for those who watch them.
package meminfo

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Left returns the bytes that are free or page cache that nobody used lately: MemFree and Inactive(file) of the file, which is
// /proc/meminfo. The kubelet's memory.available is more on a node with cgroup v2: it does not count the kernel's own memory as used.
func Left(file string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read what memory is left: %w", err)
	}
	var sum int64
	found := 0
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "MemFree" && name != "Inactive(file)" {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s: %s: %w", file, name, err)
		}
		sum += kib << 10
		found++
	}
	if found != 2 {
		return 0, fmt.Errorf("read %s: no MemFree or no Inactive(file)", file)
	}
	return sum, nil
}
