package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

var redisNeeds = []need{{"redis-server", "redis-server"}}

const valueSize = 1024

// redis is a client of a server in the box.
type redis struct {
	conn  net.Conn
	in    *bufio.Reader
	value *rand.Rand
}

// startRedis starts the server, and a client on its socket.
func startRedis(ctx context.Context, b *box) (context.Context, *redis, error) {
	socket := b.file("redis.sock")
	ctx, err := b.serve(ctx, "redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", b.dir)
	if err != nil {
		return ctx, nil, err
	}
	r := &redis{value: rand.New(rand.NewPCG(3, 3))}
	if err := until(ctx, "wait for Redis", 20*time.Second, func() bool {
		r.conn, err = net.Dial("unix", socket)
		return err == nil
	}); err != nil {
		return ctx, nil, err
	}
	r.in = bufio.NewReader(r.conn)
	if err := pause(ctx, 2*time.Second); err != nil {
		return ctx, nil, err
	}
	b.mark()
	return ctx, r, pause(ctx, 2*time.Second)
}

// set sets keys at a rate in bytes of values per second, for the given bytes or until done reports true. Values do not compress.
func (r *redis) set(ctx context.Context, rate, total float64, key func(i int) int, done func() bool) error {
	start, sent := time.Now(), 0
	value := make([]byte, valueSize)
	for float64(sent*valueSize) < total && !done() {
		due := int(time.Since(start).Seconds() * rate / valueSize)
		n := min(due-sent, 2000)
		if n <= 0 {
			if err := pause(ctx, 5*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		var out bytes.Buffer
		for i := range n {
			for j := range value {
				value[j] = byte(r.value.Uint32())
			}
			k := fmt.Sprintf("key:%08d", key(sent+i))
			fmt.Fprintf(&out, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(k), k, len(value), value)
		}
		if _, err := r.conn.Write(out.Bytes()); err != nil {
			return fmt.Errorf("set keys: %w", err)
		}
		for range n {
			if answer, err := r.line(); err != nil || answer != "+OK" {
				return fmt.Errorf("set keys: %q, %w", answer, err)
			}
		}
		if sent += n; ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (r *redis) line() (string, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	text, err := r.in.ReadString('\n')
	return strings.TrimRight(text, "\r\n"), err
}

// call sends a command of one line, and returns the answer: of a long one the text.
func (r *redis) call(command string) (string, error) {
	if _, err := fmt.Fprintf(r.conn, "%s\r\n", command); err != nil {
		return "", fmt.Errorf("%s: %w", command, err)
	}
	answer, err := r.line()
	if err != nil {
		return "", fmt.Errorf("%s: %w", command, err)
	}
	var n int
	if _, err := fmt.Sscanf(answer, "$%d", &n); err != nil {
		return answer, nil
	}
	text := make([]byte, n+2)
	if _, err := io.ReadFull(r.in, text); err != nil {
		return "", fmt.Errorf("%s: %w", command, err)
	}
	return string(text[:n]), nil
}

// saving reports whether a background save runs; one that failed ends the recording.
func (r *redis) saving() (bool, error) {
	text, err := r.call("INFO persistence")
	if err == nil && strings.Contains(text, "rdb_last_bgsave_status:err") {
		err = fmt.Errorf("the background save failed")
	}
	return strings.Contains(text, "rdb_bgsave_in_progress:1"), err
}

func never() bool { return false }

func count(i int) int { return i }

// redisSave writes as it saves: each page that is written is copied for the saving process.
func redisSave(saves int) func(context.Context, *box) error {
	return func(ctx context.Context, b *box) error {
		ctx, r, err := startRedis(ctx, b)
		if err != nil {
			return err
		}
		defer r.conn.Close()
		const total = 600 * mib
		if err := r.set(ctx, 25*mib, total, count, never); err != nil {
			return err
		}
		for range saves {
			if err := r.save(ctx, total); err != nil {
				return err
			}
		}
		return pause(ctx, 8*time.Second)
	}
}

// save saves in the background, and writes to the keys until that is done.
func (r *redis) save(ctx context.Context, total int) error {
	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	if answer, err := r.call("BGSAVE"); err != nil || !strings.Contains(answer, "started") {
		return fmt.Errorf("save: %q, %w", answer, err)
	}
	for {
		if err := r.set(ctx, 60*mib, 6*mib, func(int) int { return rand.IntN(total / valueSize) }, never); err != nil {
			return err
		}
		if saving, err := r.saving(); err != nil || !saving {
			return err
		}
	}
}

// redisFill is a client that sets new keys at a rate, both in bytes of values.
func redisFill(rate, total float64) func(context.Context, *box) error {
	return func(ctx context.Context, b *box) error {
		ctx, r, err := startRedis(ctx, b)
		if err != nil {
			return err
		}
		defer r.conn.Close()
		return r.set(ctx, rate, total, count, never)
	}
}
