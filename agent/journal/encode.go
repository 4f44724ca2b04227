package journal

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// maxName is the longest field name that journald takes, in bytes (journal_field_valid).
	maxName = 64
	// maxValue is the longest value that is sent, in bytes; the rest is cut off and the cut is marked. Journald itself
	// would take far more; a record that large would only cost memory when there is least of it.
	maxValue = 1 << 20
	// maxDepth bounds nested groups.
	maxDepth = 16
)

// appendAttr appends the fields of one attribute. The rules for empty attributes and groups are those of slog.Handler.
func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	return appendAttrAt(b, prefix, a, 0)
}

func appendAttrAt(b []byte, prefix string, a slog.Attr, depth int) []byte {
	v := a.Value.Resolve()
	if a.Key == "" && v.Kind() == slog.KindAny && v.Any() == nil {
		return b
	}
	if v.Kind() != slog.KindGroup {
		text := valueText(v)
		if a.Key == "message_id" {
			if id, ok := messageID(text); ok {
				return appendField(b, "MESSAGE_ID", id)
			}
		}
		return appendField(b, fieldName(prefix+a.Key), text)
	}
	if depth == maxDepth {
		return appendField(b, fieldName(prefix+a.Key), "(groups nested too deep)")
	}
	if a.Key != "" {
		prefix += a.Key + "_"
	}
	for _, member := range v.Group() {
		b = appendAttrAt(b, prefix, member, depth+1)
	}
	return b
}

// appendField appends one field: NAME=value and a newline, or, when the value holds control characters, the binary form
// NAME, newline, length as 64-bit little endian, value, newline, which no value can break out of.
func appendField(b []byte, name, value string) []byte {
	value = limit(value)
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

// limit cuts a value that is too long, between characters, and says so.
func limit(s string) string {
	if len(s) <= maxValue {
		return s
	}
	cut := maxValue
	for back := 0; back < utf8.UTFMax && !utf8.RuneStart(s[cut]); back++ {
		cut--
	}
	return s[:cut] + "... (" + strconv.Itoa(len(s)-cut) + " bytes cut)"
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

// messageID accepts 32 hexadecimal digits, dashes in between allowed, and returns them in lower case without dashes.
func messageID(s string) (string, bool) {
	s = strings.ToLower(strings.ReplaceAll(s, "-", ""))
	if len(s) != 32 {
		return "", false
	}
	if _, err := hex.DecodeString(s); err != nil {
		return "", false
	}
	return s, true
}

// valueText is the text of a value: numbers and booleans as in Go, durations with their unit, times as RFC 3339, errors
// and Stringers by their method, string types as they are, other types as JSON.
func valueText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return formatTime(v.Time())
	case slog.KindAny:
	default:
		return v.String()
	}
	switch x := v.Any().(type) {
	case nil:
		return ""
	case []byte:
		return string(x)
	case error, fmt.Stringer:
		return fmt.Sprint(x) // fmt survives the panic of a nil receiver
	}
	if rv := reflect.ValueOf(v.Any()); rv.Kind() == reflect.String {
		return rv.String()
	}
	if text, err := json.Marshal(v.Any()); err == nil {
		return string(text)
	}
	return fmt.Sprintf("%+v", v.Any())
}
