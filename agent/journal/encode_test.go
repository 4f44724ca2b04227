package journal

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func formatID(st *syscall.Stat_t) string {
	return strconv.FormatUint(st.Dev, 10) + ":" + strconv.FormatUint(st.Ino, 10)
}

func TestFieldName(t *testing.T) {
	for in, want := range map[string]string{
		"pod":                              "POD",
		"pod.name":                         "POD_NAME",
		"spillway/release":                 "SPILLWAY_RELEASE",
		"__cursor":                         "CURSOR",
		"_":                                "UNNAMED",
		"":                                 "UNNAMED",
		"9lives":                           "N_9LIVES",
		"größe":                            "GR____E",
		"a b\n=c":                          "A_B__C",
		"code_file":                        "SPILLWAY_CODE_FILE",
		"Priority":                         "SPILLWAY_PRIORITY",
		"priority_class":                   "PRIORITY_CLASS",
		strings.Repeat("x", 100):           strings.Repeat("X", 64),
		"code_" + strings.Repeat("x", 100): "SPILLWAY_CODE_" + strings.Repeat("X", 50),
	} {
		if got := fieldName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// validName is journald's rule, written apart from fieldName.
func validName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '_' || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// FuzzRecord checks that no text can add, remove or change a field of the record.
func FuzzRecord(f *testing.F) {
	f.Add("message", "key", "value", "group")
	f.Add("a\nPRIORITY=0\n", "priority", "\nMESSAGE=x\n", "")
	f.Add("\x00", "message_id", "7d4958e842da4a758f6c1cdc7b36dcc5", "_")
	f.Add("", "\n", "\xff\xfe", "9")
	f.Fuzz(func(t *testing.T, msg, key, value, group string) {
		var h slog.Handler = &Handler{level: slog.LevelInfo}
		if group != "" {
			h = h.WithGroup(group)
		}
		h = h.WithAttrs([]slog.Attr{slog.String(key, value)})
		jh, ok := h.(*Handler)
		if !ok {
			t.Fatalf("derived %T", h)
		}
		r := slog.NewRecord(time.Time{}, slog.LevelInfo, msg, 0)
		r.AddAttrs(slog.String("last", "end"))
		fs, err := parseRecord(jh.encode(nil, r))
		if err != nil {
			t.Fatal(err)
		}
		if len(fs) != 5 {
			t.Fatalf("%d fields: %q", len(fs), fs)
		}
		for _, fl := range fs {
			if !validName(fl.name) {
				t.Errorf("field name %q", fl.name)
			}
		}
		if fs[0] != (field{"MESSAGE", msg}) || fs[1] != (field{"PRIORITY", "6"}) || fs[2] != (field{"SYSLOG_IDENTIFIER", "spillway"}) {
			t.Errorf("record begins %q", fs[:3])
		}
		switch fs[3].name {
		case "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER":
			t.Errorf("attribute %q became %q", key, fs[3].name)
		case "MESSAGE_ID":
		default:
			if fs[3].value != value {
				t.Errorf("value %q became %q", value, fs[3].value)
			}
		}
		if fs[4].value != "end" || !strings.HasSuffix(fs[4].name, "LAST") && len(fs[4].name) != 64 {
			t.Errorf("last field %q", fs[4])
		}
	})
}

func BenchmarkHandle(b *testing.B) {
	l := listen(b)
	go func() { // a journald that reads as fast as it can
		buf := make([]byte, 4096)
		for {
			if _, err := l.conn.Read(buf); err != nil {
				return
			}
		}
	}()
	h := open(b, l.path).WithAttrs([]slog.Attr{slog.String("node", "n1")})
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		r := slog.NewRecord(time.Time{}, slog.LevelInfo, "evict pod", 0)
		r.AddAttrs(slog.String("pod", "shop/cart"), slog.Int("bytes", 1<<30))
		_ = h.Handle(ctx, r)
	}
}
