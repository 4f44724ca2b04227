// Package recording keeps what the pure core was given and what it answered, from alert to calm, in files of a bounded
// size, and plays it again: through the same code, with the same or with another configuration.
//
// A file is a row of gzip members (RFC 1952) of at most a second each, every one whole, so that the death of the agent
// costs its last second and no more. Inside are lines of JSON. An episode begins with a line that holds the
// configuration and everything that the core remembered; pods are written when they change.
package recording
