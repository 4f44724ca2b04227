//go:build !race

package pressure

const raceDetector = false
