package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"spillway/test/cluster/node"
)

// Requests to a machine that serves, by path. There is no authentication: such a machine lies in a network that
// nothing leads into.
const (
	PathMemory  = "/memory"  // GET ?every=MS: one MemorySample per line until the client goes; without it, one
	PathExec    = "/exec"    // POST ?arg=...: the body is standard input, the answer an ExecResult
	PathFile    = "/file"    // GET (&tail=BYTES), PUT and DELETE ?path=
	PathService = "/service" // POST ?name=&arg=..., GET and DELETE ?name=
)

// MemorySample is a machine's memory as its kubelet counts it, from the kernel.
type MemorySample struct {
	node.Memory
	Left     int64     `json:"left"`     // of a virtual machine: see meminfo.Left
	OOMKills int64     `json:"oomKills"` // of a virtual machine: processes killed since boot, /proc/vmstat
	Time     time.Time `json:"time"`     // the machine's clock
}

// OOMKills reads how many processes this system's kernel has killed since boot, from /proc/vmstat.
func OOMKills() (int64, error) {
	stat, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0, fmt.Errorf("read OOM kills: %w", err)
	}
	for line := range strings.Lines(string(stat)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("parse /proc/vmstat: %w", err)
			}
			return n, nil
		}
	}
	return 0, errors.New("read /proc/vmstat: no oom_kill")
}

// ExecResult is what a program left.
type ExecResult struct {
	Code   int    `json:"code"` // exit code, 128 + signal
	Stdout []byte `json:"stdout"`
	Stderr []byte `json:"stderr"`
}

// Service is the state of a program that runs in the background.
type Service struct {
	Running bool   `json:"running"`
	Ended   string `json:"ended,omitempty"` // how it ended by itself
	Log     string `json:"log"`             // path of its log file
}

// Client talks to a machine that serves.
type Client struct {
	// Address of the machine, host:port.
	Address string
	// Dial connects; nil means from here.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (c Client) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	t := &http.Transport{DialContext: c.Dial, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.Address+path+"?"+query.Encode(), body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask machine: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		resp.Body.Close()
		return nil, fmt.Errorf("machine %s %s: %s", method, path, strings.TrimSpace(string(b)))
	}
	return resp, nil
}

func (c Client) call(ctx context.Context, method, path string, query url.Values, body io.Reader, into any) error {
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(into)
	}
	if err != nil {
		return fmt.Errorf("read machine's answer to %s: %w", path, err)
	}
	return nil
}

// Memory reads the figures once.
func (c Client) Memory(ctx context.Context) (MemorySample, error) {
	var m MemorySample
	return m, c.call(ctx, http.MethodGet, PathMemory, nil, nil, &m)
}

// WatchMemory calls each for every reading until the context ends, which is no error.
func (c Client) WatchMemory(ctx context.Context, every time.Duration, each func(MemorySample)) error {
	resp, err := c.do(ctx, http.MethodGet, PathMemory, url.Values{"every": {strconv.FormatInt(max(1, every.Milliseconds()), 10)}}, nil)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var m MemorySample
		if err := d.Decode(&m); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("read machine's memory: %w", err)
		}
		each(m)
	}
}

// Exec runs a program and returns its standard output; the error holds what it wrote to standard error.
func (c Client) Exec(ctx context.Context, stdin io.Reader, argv ...string) (string, error) {
	var r ExecResult
	if err := c.call(ctx, http.MethodPost, PathExec, url.Values{"arg": argv}, stdin, &r); err != nil {
		return "", err
	}
	if r.Code != 0 {
		return string(r.Stdout), fmt.Errorf("%s: exit status %d: %s", strings.Join(argv, " "), r.Code, bytes.TrimSpace(r.Stderr))
	}
	return string(r.Stdout), nil
}

// WriteFile replaces a file; its folders are made.
func (c Client) WriteFile(ctx context.Context, name string, content []byte) error {
	return c.call(ctx, http.MethodPut, PathFile, url.Values{"path": {name}}, bytes.NewReader(content), nil)
}

// RemoveFile removes a file; one that is not there is no error.
func (c Client) RemoveFile(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, PathFile, url.Values{"path": {name}}, nil, nil)
}

// ReadFile returns the last bytes of a file.
func (c Client) ReadFile(ctx context.Context, name string, tail int64) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, PathFile, url.Values{"path": {name}, "tail": {strconv.FormatInt(tail, 10)}}, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, tail))
	if err != nil {
		return nil, fmt.Errorf("read %s of the machine: %w", name, err)
	}
	return b, nil
}

// Start starts a program in the background; a service of that name must not run.
func (c Client) Start(ctx context.Context, name string, argv ...string) error {
	return c.call(ctx, http.MethodPost, PathService, url.Values{"name": {name}, "arg": argv}, nil, nil)
}

// Stop ends it, by force after 10 s; one that does not run is no error.
func (c Client) Stop(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, PathService, url.Values{"name": {name}}, nil, nil)
}

// Service returns its state.
func (c Client) Service(ctx context.Context, name string) (Service, error) {
	var s Service
	return s, c.call(ctx, http.MethodGet, PathService, url.Values{"name": {name}}, nil, &s)
}
