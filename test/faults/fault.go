package faults

import (
	"net/http"
	"strings"
	"time"
)

// Fault is what happens to a request. The zero value passes it on and its answer back.
type Fault struct {
	// Answer is given in the place of the server's; the request is not passed on.
	Answer *Answer
	// Hold keeps the request back until it is closed. A client that hangs up meanwhile has its request dropped.
	Hold <-chan struct{}
	// HoldAnswer keeps the server's answer back until it is closed: what was asked for has happened.
	HoldAnswer <-chan struct{}
	// Cut closes the client's connection without an answer.
	Cut Cut
}

// Cut says when a connection is cut.
type Cut int

// A connection is cut before its request was passed on, or after the server answered it.
const (
	NoCut Cut = iota
	CutBefore
	CutAfter
)

// Answer is an HTTP answer.
type Answer struct {
	Code   int
	Header http.Header
	Body   string
}

// Request is one request that a fault could meet.
type Request struct {
	At   time.Time
	Path string
	Body string

	Forwarded time.Time // when it was passed on; zero: it was not
	Code      int       // the server's own answer; 0: none
	HungUp    bool      // the client was gone before it got an answer
}

// Eviction reports whether r asks for an eviction.
func Eviction(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/eviction")
}
