package faults

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"spillway/test/cluster/pki"
)

// forwardTimeout bounds the server's answer to a request that a fault could meet.
const forwardTimeout = 30 * time.Second

// maxBody bounds a request that a fault could meet, in bytes.
const maxBody = 1 << 20

// Options describe a proxy. Target and RootCAs are required.
type Options struct {
	Target  string         // the API server, such as https://10.96.0.1:443
	RootCAs *x509.CertPool // that its certificate is held against
	// Dial reaches the target; nil: the network of this process.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Listener is where the proxy listens, and is closed with it; nil: a free port of 127.0.0.1.
	Listener net.Listener
	// Match says which requests faults apply to; nil: evictions. All others pass.
	Match func(*http.Request) bool
}

// Proxy is a running proxy. Its methods may be called from several goroutines.
type Proxy struct {
	match    func(*http.Request) bool
	target   *url.URL
	upstream *http.Transport
	pass     *httputil.ReverseProxy
	server   *http.Server
	url      string
	ca       []byte
	ended    chan error
	closing  sync.Once

	mu      sync.Mutex // guards all below
	fault   Fault
	outage  Outage
	changed chan struct{} // closed and replaced when outage changes
	seen    []*Request
	news    chan struct{} // closed and replaced when seen changes
	conns   map[net.Conn]bool
	streams int                  // watches that are open
	told    map[string]time.Time // when an answer flowed, by the last part of its path
}

// Start listens and serves until Close.
func Start(o Options) (*Proxy, error) {
	target, err := url.Parse(o.Target)
	if err != nil || target.Scheme != "https" {
		return nil, fmt.Errorf("start proxy: target %q is no https URL", o.Target)
	}
	if o.RootCAs == nil {
		return nil, errors.New("start proxy: no certificate to hold the server's against")
	}
	if o.Match == nil {
		o.Match = Eviction
	}
	if o.Listener == nil {
		if o.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, fmt.Errorf("start proxy: %w", err)
		}
	}
	p := &Proxy{match: o.Match, target: target, url: "https://" + o.Listener.Addr().String(), ended: make(chan error, 1), news: make(chan struct{}),
		changed: make(chan struct{}), conns: map[net.Conn]bool{}, told: map[string]time.Time{}}
	var cert tls.Certificate
	if cert, p.ca, err = certificate("spillway-faults", o.Listener.Addr()); err != nil {
		o.Listener.Close()
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	p.upstream = &http.Transport{DialContext: o.Dial, TLSClientConfig: &tls.Config{RootCAs: o.RootCAs}, ForceAttemptHTTP2: true}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	p.pass = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     p.upstream,
		FlushInterval: -1, // watches
		ErrorLog:      quiet,
		// A server that is away has no answer, and neither has its proxy.
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, _ error) { hangUp(r) },
	}
	p.server = &http.Server{
		Handler: http.HandlerFunc(p.serve), ErrorLog: quiet, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:   &tls.Config{Certificates: []tls.Certificate{cert}},
		ConnState:   p.track,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	go func() { p.ended <- p.server.ServeTLS(o.Listener, "", "") }()
	return p, nil
}

// certificate makes one for an address, by an authority of its own, whose certificate is PEM.
func certificate(authority string, at net.Addr) (cert tls.Certificate, ca []byte, err error) {
	by, err := pki.NewAuthority(authority)
	if err != nil {
		return cert, nil, err
	}
	host, _, err := net.SplitHostPort(at.String())
	if err != nil {
		return cert, nil, err
	}
	pair, err := by.Issue(pki.Request{Name: "faults", IPs: []net.IP{net.ParseIP(host)}})
	if err != nil {
		return cert, nil, err
	}
	cert, err = tls.X509KeyPair(pair.Cert, pair.Key)
	return cert, by.PEM(), err
}

// URL is where clients find the proxy.
func (p *Proxy) URL() string { return p.url }

// CA is what its certificate is held against, PEM.
func (p *Proxy) CA() []byte { return p.ca }

// Close cuts all connections and waits for the server's end.
func (p *Proxy) Close() error {
	var err error
	p.closing.Do(func() {
		err = p.server.Close()
		<-p.ended
		p.upstream.CloseIdleConnections()
	})
	return err
}

// Set makes f happen to every request from now on that faults apply to.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// Forget empties the record.
func (p *Proxy) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = nil
}

// Seen returns the requests that faults could meet, oldest first.
func (p *Proxy) Seen() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Request, len(p.seen))
	for i, r := range p.seen {
		out[i] = *r
	}
	return out
}

// Await waits until the record satisfies ok, and returns it.
func (p *Proxy) Await(ctx context.Context, ok func([]Request) bool) ([]Request, error) {
	for {
		p.mu.Lock()
		news := p.news
		p.mu.Unlock()
		seen := p.Seen()
		if ok(seen) {
			return seen, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return seen, fmt.Errorf("wait for requests: %w, seen %+v", context.Cause(ctx), seen)
		}
	}
}

// note changes the record.
func (p *Proxy) note(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.news)
	p.news = make(chan struct{})
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	if !p.meet(w, r) {
		return
	}
	if isStream(r) {
		p.count(1)
		defer p.count(-1)
	}
	w = &gated{w, p, r}
	if !p.match(r) {
		p.pass.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		hangUp(r)
		return
	}
	entry := &Request{At: time.Now(), Path: r.URL.RequestURI(), Body: string(body)}
	var f Fault
	p.note(func() {
		f = p.fault
		p.seen = append(p.seen, entry)
	})
	switch {
	case !p.wait(r, f.Hold, entry):
		return
	case f.Answer != nil:
		write(w, *f.Answer)
		return
	case f.Cut == CutBefore:
		hangUp(r)
		return
	}
	answer, err := p.forward(r, body, entry)
	if err != nil || f.Cut == CutAfter {
		hangUp(r)
		return
	}
	if p.wait(r, f.HoldAnswer, entry) {
		write(w, answer)
	}
}

// wait waits for held, which may be nil; false: the client was gone before.
func (p *Proxy) wait(r *http.Request, held <-chan struct{}, entry *Request) bool {
	if held == nil {
		return true
	}
	select {
	case <-held:
		return true
	case <-r.Context().Done():
		p.note(func() { entry.HungUp = true })
		return false
	}
}

// forward asks the server, which is not told when the client hangs up meanwhile.
func (p *Proxy) forward(r *http.Request, body []byte, entry *Request) (Answer, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), forwardTimeout)
	defer cancel()
	target := *p.target
	target.Path, target.RawQuery = r.URL.Path, r.URL.RawQuery
	req, err := http.NewRequestWithContext(ctx, r.Method, target.String(), bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	req.Header = r.Header.Clone()
	p.note(func() { entry.Forwarded = time.Now() })
	resp, err := p.upstream.RoundTrip(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, err
	}
	p.note(func() { entry.Code = resp.StatusCode })
	return Answer{resp.StatusCode, resp.Header, string(text)}, nil
}

func write(w http.ResponseWriter, a Answer) {
	for k, v := range a.Header {
		w.Header()[k] = v
	}
	w.Header().Del("Content-Length") // of the body as it was encoded
	w.WriteHeader(a.Code)
	_, _ = io.WriteString(w, a.Body) // a client that is gone needs none
}

type connKey struct{}

// hangUp resets the connection that a request came on, with all other requests of it.
func hangUp(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*tls.Conn); ok {
		if raw, ok := c.NetConn().(*net.TCPConn); ok {
			_ = raw.SetLinger(0) // it may be closed already
		}
		c.NetConn().Close()
	}
	panic(http.ErrAbortHandler)
}
