package status

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// The socket's group may read, and make nobody go; others do not even get in.
func TestSocketGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be someone else")
	}
	const group, stranger = 4242, 4343
	path := socketPath(t)
	if err := os.Chmod(filepath.Dir(filepath.Dir(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := ListenFor(path, group, Views{
		Status: func() *Status { return &Status{Node: "n"} }, Samples: someSamples,
		Once: func(context.Context, OnceRequest) (<-chan OnceEvent, error) {
			c := make(chan OnceEvent)
			close(c)
			return c, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for _, tc := range []struct {
		who      string
		uid, gid int
		request  string
		want     int // 0: not let in
	}{
		{"root reads", 0, 0, "GET /v1/status", 200},
		{"root acts", 0, 0, "POST /v1/once", 200},
		{"the group reads", 65534, group, "GET /v1/status", 200},
		{"the group acts", 65534, group, "POST /v1/once", 403},
		{"a stranger reads", 65534, stranger, "GET /v1/status", 0},
	} {
		if got, err := askAs(tc.uid, tc.gid, path, tc.request); got != tc.want || (got == 0) != (err != nil) {
			t.Errorf("%s: answer %d, %v; want %d", tc.who, got, err, tc.want)
		}
	}
}

// askAs asks as another user. Only one thread becomes that, and it ends with its goroutine.
func askAs(uid, gid int, path, request string) (code int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if uid != 0 {
			for _, call := range [][4]uintptr{{syscall.SYS_SETGROUPS}, {syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)}, {syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)}} {
				if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
					err = errno
					return
				}
			}
		}
		var c net.Conn
		if c, err = net.Dial("unix", path); err != nil {
			return
		}
		defer c.Close()
		method, where, _ := strings.Cut(request, " ")
		body := `{"targetUsagePercent": 80, "dryRun": true}`
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, where, len(body), body)
		resp, rerr := http.ReadResponse(bufio.NewReader(c), nil)
		if rerr != nil {
			err = rerr
			return
		}
		resp.Body.Close()
		code = resp.StatusCode
	}()
	<-done
	return code, err
}
