package faults

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"testing"
	"time"
)

// stream sends a line each 5 ms until the client is gone.
func stream(w http.ResponseWriter, r *http.Request) {
	for {
		if _, err := io.WriteString(w, "line\n"); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush() // the next write fails where this does
		select {
		case <-r.Context().Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// follow opens a watch of pods and delivers its lines; the channel is closed with the stream.
func (r *rig) follow(t *testing.T) <-chan string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.proxy.URL()+"/api/v1/pods?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		defer resp.Body.Close()
		for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
			select {
			case lines <- sc.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return lines
}

func (r *rig) get(ctx context.Context) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.proxy.URL()+"/version", nil)
	if err != nil {
		return 0, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func TestOutages(t *testing.T) {
	const patience = 10 * time.Second
	more := func(t *testing.T, lines <-chan string) {
		t.Helper()
		select {
		case _, open := <-lines:
			if !open {
				t.Fatal("the stream has ended")
			}
		case <-time.After(patience):
			t.Fatal("nothing flows")
		}
	}

	t.Run("streams are held", func(t *testing.T) {
		r := newRig(t)
		lines := r.follow(t)
		more(t, lines)
		if n := r.proxy.Streams(); n != 1 {
			t.Errorf("%d streams", n)
		}
		r.proxy.SetOutage(Outage{HoldStreams: true})
		for quiet := false; !quiet; { // what was on its way arrives
			select {
			case <-lines:
			case <-time.After(200 * time.Millisecond):
				quiet = true
			}
		}
		told := r.proxy.Told("pods")
		if code, err := r.get(t.Context()); code != 200 || err != nil {
			t.Errorf("another request: %d, %v", code, err)
		}
		if got := r.proxy.Told("pods"); got.IsZero() || !got.Equal(told) || !r.proxy.Told("version").After(told) {
			t.Errorf("pods told at %v, then %v; version at %v", told, got, r.proxy.Told("version"))
		}
		r.proxy.SetOutage(Outage{})
		more(t, lines)
	})

	t.Run("cut", func(t *testing.T) {
		r := newRig(t)
		lines := r.follow(t)
		more(t, lines)
		r.proxy.SetOutage(Outage{Cut: true})
		ended := time.After(patience)
		for open := true; open; {
			select {
			case _, open = <-lines:
			case <-ended:
				t.Fatal("the stream goes on")
			}
		}
		if code, err := r.get(t.Context()); err == nil {
			t.Errorf("a new request has the answer %d", code)
		}
		r.proxy.SetOutage(Outage{})
		if code, err := r.get(t.Context()); code != 200 || err != nil {
			t.Errorf("afterwards %d, %v", code, err)
		}
	})

	t.Run("answer", func(t *testing.T) {
		r := newRig(t)
		r.proxy.SetOutage(Outage{Answer: &Answer{Code: 503, Body: "overload"}})
		if code, err := r.get(t.Context()); code != 503 || err != nil {
			t.Errorf("%d, %v", code, err)
		}
		if code, body, err := r.evict(t.Context()); code != 503 || body != "overload" || err != nil || r.served.Load() != 0 {
			t.Errorf("eviction %d %q, %v; the server saw %d", code, body, err, r.served.Load())
		}
	})

	t.Run("delay", func(t *testing.T) {
		r := newRig(t)
		r.proxy.SetOutage(Outage{Delay: 100 * time.Millisecond})
		began := time.Now()
		if code, err := r.get(t.Context()); code != 200 || err != nil || time.Since(began) < 100*time.Millisecond {
			t.Errorf("%d, %v after %v", code, err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		r.proxy.SetOutage(Outage{Delay: time.Hour})
		if code, err := r.get(ctx); err == nil {
			t.Errorf("%d within 10 ms", code)
		}
	})
}
