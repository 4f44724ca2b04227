package cri

import "time"

// View is what Watch knows at one moment. It is immutable: the slice is shared and must not be written to.
type View struct {
	Containers []Container // sorted by id; the last known ones while Synced is false
	Revision   uint64      // grows by one each time Containers differs from before; 0 before the first list

	// Synced is true while the last list succeeded and no event is known to be missing from Containers. The first view
	// with Synced true is a complete one.
	Synced      bool
	LastContact time.Time // when the runtime last answered a list; zero if never

	// Err says why the runtime cannot be read: socket, connection, hang; empty when it can.
	Err string
	// Hung is true when the last call reached the timeout (Err says so too), and Hangs counts such calls since the start.
	Hung  bool
	Hangs uint64
	// Latency is how long the last complete list took; after a hang it is the timeout. 0 before the first list.
	Latency time.Duration

	// Events is true while the event stream is live. False with an empty Err: the runtime offers none, or it was cut, and
	// the list is polled.
	Events bool
}
