package journal

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"strings"
	"time"
)

// maxName is the longest field name that journald takes, in bytes (journal_field_valid).
const maxName = 64

// appendAttr appends the field of one attribute; an empty one is left out. The name of a group is a prefix.
func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	a.Value = a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return b
	}
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "_"
		}
		for _, member := range a.Value.Group() {
			b = appendAttr(b, prefix, member)
		}
		return b
	}
	text := valueText(a.Value)
	if a.Key == "message_id" && isID(text) {
		return appendField(b, "MESSAGE_ID", text)
	}
	return appendField(b, fieldName(prefix+a.Key), text)
}

// appendField appends one field: NAME=value and a newline, or, when the value holds control characters, the binary form
// NAME, newline, length as 64-bit little endian, value, newline, which no value can break out of.
func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	if plain(value) {
		b = append(b, '=')
	} else {
		b = append(b, '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	}
	b = append(b, value...)
	return append(b, '\n')
}

// plain says whether a value may go on one line.
func plain(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// fieldName makes a name that journald takes: A-Z, 0-9 and _, not beginning with _ or a digit, at most 64 bytes, and
// not one of those that journald or its readers give a meaning.
func fieldName(name string) string {
	out := make([]byte, 0, maxName)
	for i := 0; i < len(name) && len(out) < maxName; i++ {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z':
			c -= 'a' - 'A'
		case c >= 'A' && c <= 'Z':
		case c >= '0' && c <= '9':
			if len(out) == 0 {
				out = append(out, 'N', '_')
			}
		default:
			if len(out) == 0 {
				continue
			}
			c = '_'
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return "UNNAMED"
	}
	if reserved(string(out)) {
		out = append([]byte("SPILLWAY_"), out...)
	}
	return string(out[:min(len(out), maxName)])
}

// reserved names the user fields of systemd.journal-fields(7), so that an attribute such as a pod's priority cannot be
// taken for the record's.
func reserved(name string) bool {
	switch name {
	case "MESSAGE", "MESSAGE_ID", "PRIORITY", "ERRNO", "INVOCATION_ID", "USER_INVOCATION_ID", "TID", "UNIT", "USER_UNIT",
		"DOCUMENTATION", "LIMIT", "LIMIT_PRETTY", "LEADER", "SEAT", "SESSION_ID", "USER_ID":
		return true
	}
	for _, p := range []string{"SYSLOG_", "CODE_", "OBJECT_", "COREDUMP_", "JOURNAL_"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// isID reports whether s is a 128-bit id, as journald wants it.
func isID(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 32
}

// valueText is the text of a value: numbers and booleans as in Go, durations with their unit, times as RFC 3339 with
// nanoseconds, lists of strings as JSON, all else as fmt prints it.
func valueText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindAny:
		switch x := v.Any().(type) {
		case nil:
			return ""
		case []string:
			if text, err := json.Marshal(x); err == nil {
				return string(text)
			}
		}
	}
	return v.String()
}
