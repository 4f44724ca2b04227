// Package journal writes log records to systemd-journald in its native protocol, as fields that can be searched
// (journalctl POD=..., MESSAGE_ID=...). It never waits: a record that journald cannot take now is dropped and counted.
//
// Source: systemd's "Native Journal Protocol" (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/), systemd.journal-fields(7)
// and journal_field_valid() in systemd src/libsystemd/sd-journal.
package journal

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

// DefaultSocket is where journald listens for native messages.
const DefaultSocket = "/run/systemd/journal/socket"

// Identifier is the SYSLOG_IDENTIFIER of every record: journalctl -t spillway.
const Identifier = "spillway"

// Handler is a slog.Handler that writes to journald. Handlers derived from it (WithAttrs, WithGroup, WithLevel) share
// its socket and its counters; they may be used by several goroutines. Between two reads of journald the kernel holds
// net.unix.max_dgram_qlen records (10 by default, 512 where systemd is PID 1); what does not fit is dropped.
//
// The fields of a record are MESSAGE, PRIORITY (from the level: debug 7, info 6, notice 5 from level 2 on, warning 4,
// error 3, critical 2 from level 12 on), SYSLOG_IDENTIFIER, and one per attribute. Attribute names are upper-cased; a
// group is a prefix ("pod.name" becomes POD_NAME); what journald does not allow in a name becomes "_". The attribute
// message_id, in any group, becomes MESSAGE_ID when it is a 128-bit id in hexadecimal. Names that mean something to
// journald (PRIORITY, CODE_FILE, OBJECT_PID ...) are prefixed with SPILLWAY_.
type Handler struct {
	out    *socket
	level  slog.Leveler
	fields []byte // encoded attributes of WithAttrs
	prefix string // name prefix of WithGroup: "" or "POD_"
}

var _ slog.Handler = (*Handler)(nil)

// New returns a handler for the journald socket at path, "" meaning DefaultSocket. It takes records from slog.LevelInfo
// on, and none before a Check has found that something listens there. A journald that restarts later is found again by
// itself; inside a container mount the directory of the socket, not the socket.
func New(path string) (*Handler, error) {
	if path == "" {
		path = DefaultSocket
	}
	out, err := newSocket(path)
	if err != nil {
		return nil, fmt.Errorf("open journal socket %s: %w", path, err)
	}
	return &Handler{out: out, level: slog.LevelInfo}, nil
}

// Open is New with a Check that must succeed.
func Open(path string) (*Handler, error) {
	h, err := New(path)
	if err != nil {
		return nil, err
	}
	if err := h.Check(); err != nil {
		_ = h.Close() // the first error says it
		return nil, err
	}
	return h, nil
}

// Check looks whether something listens at the socket now. Handlers derived from this one take records from the first time on
// that it was so.
func (h *Handler) Check() error {
	if err := h.out.probe(); err != nil {
		return fmt.Errorf("open journal socket %s: %w", h.out.path, err)
	}
	h.out.seen.Store(true)
	return nil
}

// Seen reports whether a Check ever found a listener.
func (h *Handler) Seen() bool { return h.out.seen.Load() }

// WithLevel returns a handler that takes records from the given level on.
func (h *Handler) WithLevel(l slog.Leveler) *Handler {
	c := *h
	c.level = l
	return &c
}

// Enabled reports whether records of the level are written.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.level.Level() && h.out.seen.Load()
}

// WithAttrs returns a handler that adds the attributes to every record.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.fields = slices.Clip(h.fields)
	for _, a := range attrs {
		c.fields = appendAttr(c.fields, h.prefix, a)
	}
	return &c
}

// WithGroup returns a handler that puts the group's name before the names of all later attributes.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix = h.prefix + name + "_"
	return &c
}

// Handle sends one record. The error says why it was dropped (and counted); it is never worth a retry.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	buf, _ := h.out.buffers.Get().(*[]byte)
	b := h.encode((*buf)[:0], r)
	err := h.out.send(b)
	if cap(b) <= maxPooled {
		*buf = b
		h.out.buffers.Put(buf)
	}
	return err
}

// encode appends the record in the native protocol.
func (h *Handler) encode(b []byte, r slog.Record) []byte {
	b = appendField(b, "MESSAGE", r.Message)
	b = append(b, "PRIORITY="...)
	b = append(b, priority(r.Level), '\n')
	b = append(b, "SYSLOG_IDENTIFIER="+Identifier+"\n"...)
	b = append(b, h.fields...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.prefix, a)
		return true
	})
	return b
}

// Dropped returns how many records were not delivered since the first Check that found a listener.
func (h *Handler) Dropped() uint64 { return h.out.dropped.Load() }

// Close closes the socket of this handler and of all derived ones; later records are dropped. It may be called again.
func (h *Handler) Close() error { return h.out.close() }

// priority is the syslog severity of a level.
func priority(l slog.Level) byte {
	switch {
	case l < slog.LevelInfo:
		return '7'
	case l < slog.LevelInfo+2:
		return '6'
	case l < slog.LevelWarn:
		return '5'
	case l < slog.LevelError:
		return '4'
	case l < slog.LevelError+4:
		return '3'
	}
	return '2'
}

// maxPooled keeps the buffer of a rare huge record from staying in memory, in bytes.
const maxPooled = 64 << 10

func newBuffers() *sync.Pool {
	return &sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}
}
