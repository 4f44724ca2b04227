package main

import (
	"strings"
	"testing"
)

// Wrong usage has exit code 2, however it is wrong: a script tells a typing error from an agent that does not run.
func TestWrongUsage(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"statsu"}, `unknown command "statsu"`},
		{[]string{"status", "now"}, `"now"`},
		{[]string{"agent", "extra"}, `"extra"`},
		{[]string{"status", "-o", "text"}, `table, json or yaml`},
	} {
		code, stdout, stderr := call(t, tc.args...)
		if code != 2 || stdout != "" || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: code %d, stdout %q, stderr %q; want 2 and %q", tc.args, code, stdout, stderr, tc.want)
		}
	}
}
