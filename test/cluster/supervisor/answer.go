package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"spillway/test/cluster"
)

// answer serves requests of the harness until the context ends.
func (s *Supervisor) answer(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	handle := func(pattern string, do func(context.Context, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) {
			ctx, cancel := context.WithTimeout(req.Context(), 2*time.Minute)
			defer cancel()
			s.kubeletMu.Lock()
			defer s.kubeletMu.Unlock()
			if err := do(ctx, req); err != nil {
				s.log.Error("request", "path", req.URL.Path, "error", err)
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			facts := s.facts
			facts.VMs = s.vmFacts()
			if c := s.failedComponent(); c != nil {
				facts.Failed = c.name
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(facts) // the client sees a short answer
		})
	}
	handle("GET "+cluster.ControlFacts, func(context.Context, *http.Request) error { return nil })
	handle("POST "+cluster.ControlStopKubelet, func(context.Context, *http.Request) error { return s.stopKubelet() })
	handle("POST "+cluster.ControlStartKubelet, func(ctx context.Context, _ *http.Request) error { return s.startKubelet(ctx) })
	handle("POST "+cluster.ControlStopRuntime, func(context.Context, *http.Request) error { return s.stopRuntime() })
	handle("POST "+cluster.ControlStartRuntime, func(ctx context.Context, _ *http.Request) error { return s.startRuntime(ctx) })
	handle("POST "+cluster.ControlMargin, func(ctx context.Context, req *http.Request) error {
		var m cluster.MarginRequest
		if err := json.NewDecoder(req.Body).Decode(&m); err != nil {
			return fmt.Errorf("parse request: %w", err)
		}
		// Before the kubelet stops, so that its own memory is in the figure.
		if err := s.setThresholds(m.Margin); err != nil {
			return err
		}
		if s.kubelet != nil {
			if err := s.stopKubelet(); err != nil {
				return err
			}
		}
		return s.startKubelet(ctx)
	})
	handle("POST "+cluster.ControlVMUp, func(ctx context.Context, req *http.Request) error {
		var r cluster.VMRequest
		if err := json.NewDecoder(req.Body).Decode(&r); err != nil {
			return fmt.Errorf("parse request: %w", err)
		}
		return s.startVM(ctx, r)
	})
	handle("POST "+cluster.ControlVMDown, func(ctx context.Context, req *http.Request) error {
		var r cluster.VMRequest
		if err := json.NewDecoder(req.Body).Decode(&r); err != nil {
			return fmt.Errorf("parse request: %w", err)
		}
		return s.stopVM(ctx, r.Name)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve requests: %w", err)
	}
	return nil
}
