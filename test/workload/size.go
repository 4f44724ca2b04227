package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// size is a flag value in bytes.
type size int64

func (s *size) Set(text string) error {
	v, err := parseSize(text)
	if err != nil {
		return err
	}
	*s = size(v)
	return nil
}

func (s *size) String() string { return strconv.FormatInt(int64(*s), 10) }

// parseSize reads a whole number of bytes with an optional binary suffix.
func parseSize(text string) (int64, error) {
	digits, shift := text, 0
	for suffix, n := range map[string]int{"Ki": 10, "Mi": 20, "Gi": 30} {
		if d, ok := strings.CutSuffix(text, suffix); ok {
			digits, shift = d, n
		}
	}
	v, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || v < 0 || v > math.MaxInt64>>shift {
		return 0, fmt.Errorf("parse size %q: want a number of bytes, Ki, Mi or Gi", text)
	}
	return v << shift, nil
}
