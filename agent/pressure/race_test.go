//go:build race

package pressure

// raceDetector is true where the race detector watches, which makes the long traces ten times longer; nothing here has
// goroutines.
const raceDetector = true
