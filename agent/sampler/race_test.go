//go:build race

package sampler

// raceDetector is true where the race detector watches: the system calls of golang.org/x/sys then hand their buffers to
// it, which moves them from the stack to the heap, so that allocations say nothing.
const raceDetector = true
