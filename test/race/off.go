//go:build !race

// Package race tells tests whether the race detector watches them: it makes long runs ten times longer, and the system calls of
// golang.org/x/sys hand their buffers to it, which moves them from the stack to the heap. What a test leaves out for that,
// make plain runs without it: all packages whose tests import this one.
package race

// Enabled is true where the race detector watches.
const Enabled = false
