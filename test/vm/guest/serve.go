package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"spillway/test/cluster/node"
	"spillway/test/meminfo"
	"spillway/test/vm"
)

// stopGrace is how long a service has after SIGTERM.
const stopGrace = 10 * time.Second

// execOutput is the most that is kept of a program's output.
const execOutput = 32 << 20

func serve() error {
	b, err := vm.ReadBoot()
	if err != nil {
		return err
	}
	s := &server{services: map[string]*service{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+vm.PathMemory, s.memory)
	mux.HandleFunc("POST "+vm.PathExec, s.exec)
	mux.HandleFunc("GET "+vm.PathFile, s.readFile)
	mux.HandleFunc("PUT "+vm.PathFile, s.writeFile)
	mux.HandleFunc("DELETE "+vm.PathFile, s.removeFile)
	mux.HandleFunc("POST "+vm.PathService, s.start)
	mux.HandleFunc("GET "+vm.PathService, s.state)
	mux.HandleFunc("DELETE "+vm.PathService, s.stop)
	server := &http.Server{Addr: net.JoinHostPort("", strconv.Itoa(b.Serve)), Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}

type server struct {
	mu       sync.Mutex // guards services
	services map[string]*service
}

type service struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it ended; err is set then
	err  error
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(v) // the client sees a short answer
}

func readMemory() (vm.MemorySample, error) {
	m, err := node.ReadMemory("/proc", "/sys/fs/cgroup")
	if err != nil {
		return vm.MemorySample{}, err
	}
	left, err := meminfo.Left("/proc/meminfo")
	if err != nil {
		return vm.MemorySample{}, err
	}
	kills, err := vm.OOMKills()
	return vm.MemorySample{Memory: m, Left: left, OOMKills: kills, Time: time.Now()}, err
}

func (s *server) memory(w http.ResponseWriter, req *http.Request) {
	every, err := strconv.Atoi(req.FormValue("every"))
	if err != nil {
		m, err := readMemory()
		answer(w, m, err)
		return
	}
	tick := time.NewTicker(time.Duration(every) * time.Millisecond)
	defer tick.Stop()
	flush := http.NewResponseController(w)
	for out := json.NewEncoder(w); ; {
		m, err := readMemory()
		if err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			return
		}
		if err := errors.Join(out.Encode(m), flush.Flush()); err != nil {
			return
		}
		select {
		case <-req.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// limited keeps the first bytes and drops the rest.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(0, execOutput-l.Len()))])
	return len(p), nil
}

func (s *server) exec(w http.ResponseWriter, req *http.Request) {
	argv := req.URL.Query()["arg"]
	if len(argv) == 0 {
		answer(w, nil, errors.New("no program given"))
		return
	}
	cmd := exec.CommandContext(req.Context(), argv[0], argv[1:]...)
	var stdout, stderr limited
	cmd.Stdin, cmd.Stdout, cmd.Stderr = req.Body, &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	r := vm.ExecResult{Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.Code, err = exit.ExitCode(), nil
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.Code = 128 + int(ws.Signal())
		}
	}
	answer(w, r, err)
}

func (s *server) readFile(w http.ResponseWriter, req *http.Request) {
	err := func() error {
		tail, err := strconv.ParseInt(req.FormValue("tail"), 10, 64)
		if err != nil {
			return fmt.Errorf("parse tail: %w", err)
		}
		f, err := os.Open(req.FormValue("path"))
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Size() > tail {
			if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
				return err
			}
		}
		_, err = io.Copy(w, io.LimitReader(f, tail))
		return err
	}()
	if err != nil {
		answer(w, nil, err)
	}
}

func (s *server) writeFile(w http.ResponseWriter, req *http.Request) {
	name := req.URL.Query().Get("path")
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		var content []byte
		if content, err = io.ReadAll(req.Body); err == nil {
			// In place: containers have the file itself mounted.
			err = os.WriteFile(name, content, 0o644)
		}
	}
	answer(w, struct{}{}, err)
}

func (s *server) removeFile(w http.ResponseWriter, req *http.Request) {
	err := os.Remove(req.FormValue("path"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	answer(w, struct{}{}, err)
}

func (s *server) start(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	answer(w, struct{}{}, s.startService(q.Get("name"), q["arg"]))
}

func (s *server) startService(name string, argv []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.services[name]; old != nil && !old.ended() {
		return fmt.Errorf("start %s: it runs", name)
	}
	if name == "" || len(argv) == 0 {
		return errors.New("start service: no name or no program given")
	}
	v := &service{log: filepath.Join("/var/log", name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(v.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	v.cmd = exec.CommandContext(context.Background(), argv[0], argv[1:]...)
	v.cmd.Stdout, v.cmd.Stderr = log, log
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := v.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		v.err = v.cmd.Wait()
		close(v.done)
	}()
	s.services[name] = v
	return nil
}

func (v *service) ended() bool {
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

func (s *server) state(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.services[req.FormValue("name")]
	if v == nil {
		answer(w, vm.Service{}, nil)
		return
	}
	st := vm.Service{Running: !v.ended(), Log: v.log}
	if !st.Running {
		st.Ended = "exit status 0"
		if v.err != nil {
			st.Ended = v.err.Error()
		}
	}
	answer(w, st, nil)
}

func (s *server) stop(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.services[req.URL.Query().Get("name")]; v != nil && !v.ended() {
		_ = v.cmd.Process.Signal(syscall.SIGTERM) // it may just have ended
		select {
		case <-v.done:
		case <-time.After(stopGrace):
			_ = v.cmd.Process.Kill()
			<-v.done
		}
	}
	answer(w, struct{}{}, nil)
}
