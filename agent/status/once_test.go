package status

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// pipes is a listener whose connections stay inside a synctest bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return &peer{c, uint32(os.Geteuid())}, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	near, far := net.Pipe()
	p.conns <- far
	return near
}

// onceServer serves once in a bubble until stop.
func onceServer(t *testing.T, once func(context.Context, OnceRequest) (<-chan OnceEvent, error)) (p *pipes, stop func()) {
	t.Helper()
	p = &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	s := &Server{path: t.TempDir() + "/none", listener: p, http: serverOf(Views{Once: once})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return p, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func (p *pipes) post(ctx context.Context, body string) (*http.Response, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return p.dial(), nil },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://spillway/v1/once", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}

// A run takes longer than any other answer may: no time-out of the server ends it, while its lines are read.
func TestOnceGoesOnForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := onceServer(t, func(_ context.Context, r OnceRequest) (<-chan OnceEvent, error) {
			ch := make(chan OnceEvent)
			go func() {
				defer close(ch)
				for i := range 40 {
					time.Sleep(30 * time.Second) // the bubble's time
					ch <- OnceEvent{At: time.Now().UTC(), State: OnceHeld, Text: fmt.Sprint(i), TargetPercent: r.TargetUsagePercent}
				}
			}()
			return ch, nil
		})
		resp, err := p.post(t.Context(), `{"targetUsagePercent":80}`)
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || bytes.Count(text, []byte("\n")) != 40 || !strings.Contains(string(text), `"text":"39"`) {
			t.Errorf("status %d, %v, %d lines, want 40 over 20 min", resp.StatusCode, err, bytes.Count(text, []byte("\n")))
		}
	})
}

// A connection that ends, and one whose other side does not read, stop the run.
func TestOnceEndsWithItsConnection(t *testing.T) {
	for _, tc := range []struct {
		name   string
		within time.Duration
		leave  func(*http.Response)
	}{
		{"hang-up", time.Second, func(r *http.Response) { r.Body.Close() }},
		{"nobody reads", 30 * time.Second, func(*http.Response) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ended time.Time
				p, stop := onceServer(t, func(ctx context.Context, _ OnceRequest) (<-chan OnceEvent, error) {
					ch := make(chan OnceEvent)
					go func() {
						for {
							select {
							case ch <- OnceEvent{State: OnceHeld, Text: strings.Repeat("x", 1<<16)}:
							case <-ctx.Done():
								ended = time.Now()
								return
							}
						}
					}()
					return ch, nil
				})
				resp, err := p.post(t.Context(), `{"targetUsagePercent":80}`)
				if err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				tc.leave(resp)
				time.Sleep(tc.within)
				synctest.Wait()
				if ended.IsZero() || ended.Sub(begin) > tc.within {
					t.Errorf("ended %v after %v", ended, ended.Sub(begin))
				}
				resp.Body.Close()
				stop()
			})
		})
	}
}

// An agent that stops still says so: the server waits a moment for the last line.
func TestOnceLastWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agent, end := context.WithCancel(t.Context())
		p, stop := onceServer(t, func(context.Context, OnceRequest) (<-chan OnceEvent, error) {
			ch := make(chan OnceEvent, 2)
			ch <- OnceEvent{State: OnceStarted}
			go func() {
				<-agent.Done()
				time.Sleep(100 * time.Millisecond)
				ch <- OnceEvent{State: OnceEnded, Summary: &OnceSummary{Reason: OnceStopping}}
				close(ch)
			}()
			return ch, nil
		})
		resp, err := p.post(t.Context(), `{"targetUsagePercent":80}`)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		read := make(chan string)
		go func() {
			text, err := io.ReadAll(resp.Body)
			read <- fmt.Sprint(err, string(text))
		}()
		end()
		stop()
		if text := <-read; !strings.HasPrefix(text, "<nil>") || !strings.Contains(text, OnceStopping) {
			t.Error(text)
		}
	})
}

func TestOnceRefuses(t *testing.T) {
	called := 0
	for _, tc := range []struct {
		name, body string
		code       int
		want       string
	}{
		{"unknown field", `{"targetUsagePercent":80,"force":true}`, 400, "force"},
		{"no target", `{}`, 400, "targetUsagePercent: 0, want 1 to 99"},
		{"target too high", `{"targetUsagePercent":100}`, 400, "targetUsagePercent: 100, want 1 to 99"},
		{"target too low", `{"targetUsagePercent":0.5}`, 400, "targetUsagePercent: 0.5, want 1 to 99"},
		{"target is no number", `{"targetUsagePercent":"80"}`, 400, "targetUsagePercent"},
		{"no JSON", `hello`, 400, "read request"},
		{"nothing", ``, 400, "read request"},
		{"cut off", `{"targetUsagePercent":80`, 400, "read request"},
		{"two requests", `{"targetUsagePercent":80}{"targetUsagePercent":70}`, 400, "more than one"},
		{"too large", `{"targetUsagePercent":80` + strings.Repeat(" ", onceBody) + `}`, 413, "too large"},
		{"too large behind the request", `{"targetUsagePercent":80}` + strings.Repeat(" ", onceBody), 413, "too large"},
		{"another run", `{"targetUsagePercent":70}`, 409, "one at a time"},
		{"too many ask", `{"targetUsagePercent":60}`, 503, "busy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, stop := onceServer(t, func(_ context.Context, r OnceRequest) (<-chan OnceEvent, error) {
					switch r.TargetUsagePercent {
					case 70:
						return nil, fmt.Errorf("towards 80 %%: %w", ErrOnceBusy)
					case 60:
						return nil, errors.New("the agent is busy")
					}
					called++
					return nil, errors.New("was called")
				})
				defer stop()
				resp, err := p.post(t.Context(), tc.body)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				text, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != tc.code || !strings.Contains(string(text), tc.want) {
					t.Errorf("%d %q (%v), want %d and %q", resp.StatusCode, text, err, tc.code, tc.want)
				}
			})
		})
	}
	if called > 0 {
		t.Errorf("%d bad requests began a run", called)
	}
}

// The client over a real socket: what was sent arrives, and an end without a summary is an error.
func TestOnceTravelsWhole(t *testing.T) {
	used, missing, measured := 81.5, int64(1<<30), uint64(900<<20)
	eviction := OnceEviction{Pod: "shop/cart", UID: "u", DecisionID: "d", State: "in-flight", ExpectedBytes: 1 << 30}
	done := eviction
	done.State, done.MeasuredBytes = "released", &measured
	no := OnceEviction{Pod: "shop/web", UID: "w", DecisionID: "e", State: "refused", ExpectedBytes: 1 << 20, Why: "a budget"}
	var tally OnceTally
	want := []OnceEvent{
		{At: time.Unix(1e9, 0).UTC(), State: OnceStarted, Text: "towards 80 %", UsedPercent: &used, TargetPercent: 80, MissingBytes: &missing},
		{At: time.Unix(1e9+1, 0).UTC(), State: "in-flight", TargetPercent: 80, Eviction: &eviction},
		{At: time.Unix(1e9+2, 0).UTC(), State: "refused", TargetPercent: 80, Eviction: &no},
		{At: time.Unix(1e9+9, 0).UTC(), State: "released", TargetPercent: 80, Eviction: &done},
	}
	for i := range want {
		tally.Take(want[i].Eviction)
	}
	want = append(want, OnceEvent{At: time.Unix(1e9+10, 0).UTC(), State: OnceEnded, TargetPercent: 80, Summary: tally.Summary(OnceReached, false)})
	if s := want[4].Summary; s.Accepted != 1 || s.ExpectedBytes != 1<<30 || s.MeasuredBytes != measured || len(s.Evictions) != 2 {
		t.Errorf("summary %+v", s)
	}
	whole := true
	path := socketPath(t)
	_, stopServer := serveViews(t, path, Views{Once: func(_ context.Context, r OnceRequest) (<-chan OnceEvent, error) {
		if r != (OnceRequest{TargetUsagePercent: 80, DryRun: true}) {
			t.Errorf("request %+v", r)
		}
		ch := make(chan OnceEvent, len(want))
		for i := range want {
			if whole || i < 3 {
				ch <- want[i]
			}
		}
		close(ch)
		return ch, nil
	}})
	defer stopServer()

	for _, whole = range []bool{true, false} {
		var got []OnceEvent
		err := Once(t.Context(), path, OnceRequest{TargetUsagePercent: 80, DryRun: true}, func(e OnceEvent) error { got = append(got, e); return nil })
		if whole && err != nil || !whole && (err == nil || !strings.Contains(err.Error(), "went away before the run was done")) {
			t.Errorf("error %v", err)
		}
		if d := cmp.Diff(want[:len(got)], got); d != "" || whole && len(got) != len(want) {
			t.Errorf("events (-sent +received):\n%s", d)
		}
	}
	stop := errors.New("enough")
	if err := Once(t.Context(), path, OnceRequest{TargetUsagePercent: 80, DryRun: true}, func(OnceEvent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	if err := Once(t.Context(), path, OnceRequest{TargetUsagePercent: 120}, nil); err == nil || !strings.Contains(err.Error(), "want 1 to 99") {
		t.Errorf("error %v", err)
	}
}

func TestOnceText(t *testing.T) {
	used, missing, less, measured := 87.25, int64(412<<20), int64(-5<<20), uint64(400<<20)
	var b strings.Builder
	at := time.Date(2026, 3, 1, 2, 3, 4, 0, time.UTC)
	for _, e := range []OnceEvent{
		{At: at, State: OnceStarted, Text: "towards 80 %", UsedPercent: &used, TargetPercent: 80, MissingBytes: &missing},
		{At: at, State: OnceHeld, Text: "a \x1b[31mname", TargetPercent: 80},
		{At: at, State: OnceEnded, Text: "reached", UsedPercent: &used, TargetPercent: 80, MissingBytes: &less},
	} {
		if err := WriteOnceEvent(&b, e); err != nil {
			t.Fatal(err)
		}
	}
	for _, dry := range []bool{false, true} {
		if err := WriteOnceSummary(&b, &OnceSummary{Reason: OnceReached, DryRun: dry, Accepted: 1, ExpectedBytes: 412 << 20, MeasuredBytes: measured, Evictions: []OnceEviction{
			{Pod: "shop/cart", State: "released", ExpectedBytes: 412 << 20, MeasuredBytes: &measured}, {Pod: "shop/web", State: "refused", ExpectedBytes: 1 << 30, Why: "a budget"},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	want := `02:03:04  used 87.2 %  target 80 %  missing 412.0 MiB   started      towards 80 %
02:03:04  used ?       target 80 %  missing ?           held         "a \x1b[31mname"
02:03:04  used 87.2 %  target 80 %  missing nothing     ended        reached

ended: reached; 1 pod evicted, 412.0 MiB expected back, 400.0 MiB measured

POD        STATE     EXPECTED   MEASURED   WHY
shop/cart  released  412.0 MiB  400.0 MiB  
shop/web   refused   1.00 GiB   -          a budget

ended: reached; 1 pod would be evicted, 412.0 MiB expected back

POD        STATE     EXPECTED   MEASURED   WHY
shop/cart  released  412.0 MiB  400.0 MiB  
shop/web   refused   1.00 GiB   -          a budget
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
