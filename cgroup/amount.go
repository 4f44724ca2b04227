package cgroup

import (
	"math"
	"os"
	"strconv"
)

// Amount is a number of bytes, or a plain count where the field says so. Two values are not numbers: Unlimited and
// Absent. A number is never above 2^63.
type Amount uint64

const (
	// Unlimited is "max" on cgroup v2 and the page-rounded maximum of a v1 limit.
	Unlimited Amount = math.MaxUint64
	// Absent says that the kernel at hand does not offer the value, or that reading it failed.
	Absent Amount = math.MaxUint64 - 1
)

// Bytes returns the number; ok is false for Unlimited and Absent.
func (a Amount) Bytes() (n uint64, ok bool) {
	if a >= Absent {
		return 0, false
	}
	return uint64(a), true
}

// String returns the decimal number, "unlimited" or "absent".
func (a Amount) String() string {
	switch a {
	case Unlimited:
		return "unlimited"
	case Absent:
		return "absent"
	}
	return strconv.FormatUint(uint64(a), 10)
}

// plus adds two numbers; the sum is Absent when one of them is no number.
func (a Amount) plus(b Amount) Amount {
	if a >= Absent || b >= Absent {
		return Absent
	}
	return a + b
}

// minus subtracts b and stops at 0; the result is Absent when one of them is no number.
func (a Amount) minus(b Amount) Amount {
	if a >= Absent || b >= Absent {
		return Absent
	}
	if b > a {
		return 0
	}
	return a - b
}

// v1Unlimited returns the value that a v1 limit file prints for "no limit": LONG_MAX rounded down to a page
// (PAGE_COUNTER_MAX in include/linux/page_counter.h).
func v1Unlimited() Amount {
	page := uint64(os.Getpagesize())
	return Amount(math.MaxInt64 / page * page)
}
