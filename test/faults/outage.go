package faults

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Outage is what happens to every request, also to those that no Fault meets. The zero value is none.
type Outage struct {
	Delay  time.Duration // before a request is passed on
	Answer *Answer       // in the place of the server's
	Cut    bool          // connections are cut, those that are there and new ones
	// HoldStreams keeps back what watches still have to tell; other requests pass.
	HoldStreams bool
}

// SetOutage makes o happen from now on.
func (p *Proxy) SetOutage(o Outage) {
	p.mu.Lock()
	p.outage = o
	close(p.changed)
	p.changed = make(chan struct{})
	var cut []net.Conn
	if o.Cut {
		for c := range p.conns {
			cut = append(cut, c)
		}
	}
	p.mu.Unlock()
	for _, c := range cut {
		c.Close()
	}
}

// Told is when the proxy last passed on bytes of an answer to a request for a resource, such as "pods"; zero: never.
func (p *Proxy) Told(resource string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.told[resource]
}

// Streams is how many watches are open.
func (p *Proxy) Streams() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.streams
}

func (p *Proxy) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams += n
}

func isStream(r *http.Request) bool { return r.URL.Query().Get("watch") != "" }

// track keeps the set of connections.
func (p *Proxy) track(c net.Conn, s http.ConnState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch s {
	case http.StateNew:
		p.conns[c] = true
	case http.StateClosed, http.StateHijacked:
		delete(p.conns, c)
	}
}

// meet lets the outage happen to a request; false: it has its answer, or none.
func (p *Proxy) meet(w http.ResponseWriter, r *http.Request) bool {
	p.mu.Lock()
	o := p.outage
	p.mu.Unlock()
	if o.Cut {
		hangUp(r)
	}
	if o.Delay > 0 {
		select {
		case <-time.After(o.Delay):
		case <-r.Context().Done():
			return false
		}
	}
	if o.Answer != nil {
		write(w, *o.Answer)
		return false
	}
	return true
}

// flow waits while streams are held, if r is one.
func (p *Proxy) flow(ctx context.Context, r *http.Request) error {
	for {
		p.mu.Lock()
		held, changed := p.outage.HoldStreams && isStream(r), p.changed
		p.mu.Unlock()
		if !held {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// gated is the way of an answer through the outage.
type gated struct {
	http.ResponseWriter
	p *Proxy
	r *http.Request
}

// Write passes bytes of the answer on when they may flow.
func (g *gated) Write(b []byte) (int, error) {
	if err := g.p.flow(g.r.Context(), g.r); err != nil {
		return 0, err
	}
	g.p.mu.Lock()
	g.p.told[lastOf(g.r.URL.Path)] = time.Now()
	g.p.mu.Unlock()
	return g.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController flush.
func (g *gated) Unwrap() http.ResponseWriter { return g.ResponseWriter }

// lastOf is the last part of a path: a resource, or an object's name.
func lastOf(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}
