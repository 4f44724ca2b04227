package cgroup

import (
	"bytes"
	"fmt"
	"path"
	"strings"
)

// SwapDevice is one line of /proc/swaps, in bytes. Swap on zram is no storage: what is swapped out stays in memory,
// compressed, and ends up in no cgroup, so it is to be counted as memory that no eviction gives back at once.
type SwapDevice struct {
	Name     string // a path, with spaces and the like as octal escapes undone
	Kind     string // "partition" or "file"
	Size     Amount
	Used     Amount
	Priority int
	Zram     *Zram // nil unless it is a zram device
}

// Zram is /sys/block/zram*/mm_stat (Documentation/admin-guide/blockdev/zram.rst), in bytes.
type Zram struct {
	Stored     Amount // uncompressed size of what it holds
	Compressed Amount
	Memory     Amount // what it takes from the node, with the losses of its allocator
	Limit      Amount // Unlimited when none is set
}

// Swaps reads /proc/swaps, and mm_stat of the zram devices in it: for the slow path. It is empty on a node without swap.
func (t *Tree) Swaps() ([]SwapDevice, error) {
	data, err := readSmall(t.proc, "swaps")
	if err != nil {
		return nil, err
	}
	all, fault := parseSwaps(data)
	if fault != nil {
		fault.Path, fault.File = t.proc, "swaps"
		return nil, fault
	}
	for i := range all {
		name := path.Base(all[i].Name)
		if all[i].Kind != "partition" || !strings.HasPrefix(name, "zram") {
			continue
		}
		if all[i].Zram, err = t.zram(name); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// zram reads mm_stat of a device.
func (t *Tree) zram(name string) (*Zram, error) {
	dir := path.Join(t.sys, "block", name)
	data, err := readSmall(dir, "mm_stat")
	if err != nil {
		return nil, err
	}
	z, fault := parseZram(data)
	if fault != nil {
		fault.Path, fault.File = dir, "mm_stat"
		return nil, fault
	}
	return &z, nil
}

func readSmall(dir, name string) ([]byte, error) {
	fd, err := openProc(join(dir, name))
	if err != nil {
		return nil, fileError("open", dir, name, err, false)
	}
	defer closeFile(&fd)
	buf := make([]byte, 4096)
	data, err := readToEnd(fd, &buf)
	if err != nil {
		return nil, fileError("read", dir, name, err, false)
	}
	return data, nil
}

// parseSwaps parses the table: a head line, then name, type, size and used in KiB, priority (swap_show in
// mm/swapfile.c). A name has its spaces escaped.
func parseSwaps(data []byte) ([]SwapDevice, *ParseError) {
	if len(data) == 0 {
		return nil, &ParseError{Err: errEmpty}
	}
	var out []SwapDevice
	head := true
	for len(data) > 0 {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole {
			return nil, &ParseError{Input: quote(line), Err: errTruncated}
		}
		data = rest
		if head {
			if head = false; !bytes.HasPrefix(line, []byte("Filename")) {
				return nil, &ParseError{Input: quote(line), Err: errMissing}
			}
			continue
		}
		f := bytes.Fields(line)
		if len(f) != 5 {
			return nil, &ParseError{Input: quote(line), Err: fmt.Errorf("%d columns, not 5", len(f))}
		}
		d := SwapDevice{Name: unescape(string(f[0])), Kind: string(f[1])}
		for i, to := range []*Amount{&d.Size, &d.Used} {
			n, cause := parseUint(f[2+i])
			if cause == nil && n > 1<<63/1024 {
				cause = errTooBig
			}
			if cause != nil {
				return nil, &ParseError{Input: quote(line), Err: cause}
			}
			*to = n * 1024
		}
		digits, negative := bytes.CutPrefix(f[4], []byte("-"))
		n, cause := parseUint(digits)
		if cause == nil && n > 1<<15 { // a short in struct swap_info_struct
			cause = errTooBig
		}
		if cause != nil {
			return nil, &ParseError{Input: quote(line), Err: cause}
		}
		if d.Priority = int(n); negative {
			d.Priority = -d.Priority
		}
		out = append(out, d)
	}
	return out, nil
}

// parseZram parses the columns orig_data_size, compr_data_size, mem_used_total and mem_limit; those after them are
// left.
func parseZram(data []byte) (Zram, *ParseError) {
	if len(data) == 0 {
		return Zram{}, &ParseError{Err: errEmpty}
	}
	line, found := bytes.CutSuffix(data, []byte("\n"))
	if !found {
		return Zram{}, &ParseError{Input: quote(data), Err: errTruncated}
	}
	f := bytes.Fields(line)
	if len(f) < 4 {
		return Zram{}, &ParseError{Input: quote(line), Err: fmt.Errorf("%d columns, not 4 or more", len(f))}
	}
	var z Zram
	for i, to := range []*Amount{&z.Stored, &z.Compressed, &z.Memory, &z.Limit} {
		n, cause := parseUint(f[i])
		if cause != nil {
			return Zram{}, &ParseError{Input: quote(line), Err: cause}
		}
		*to = n
	}
	if z.Limit == 0 {
		z.Limit = Unlimited
	}
	return z, nil
}
