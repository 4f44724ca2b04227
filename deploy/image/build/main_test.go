package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.WriteFile(bin, []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out.tar")
	good := []string{"--ref", "localhost/i:1", "--file", "/i=" + bin, "--entrypoint", "/i", "--label", "a=b", "-o", out}
	for name, tc := range map[string]struct {
		args  []string
		epoch string
		code  int
		says  string
	}{
		"good":            {good, "", 0, "sha256:"},
		"help":            {[]string{"-h"}, "", 0, "-entrypoint"},
		"no output":       {good[:8], "", 2, "-o is needed"},
		"stray argument":  {append(good[:len(good):len(good)], "x"), "", 2, "nothing but flags"},
		"bad file":        {[]string{"--file", "x"}, "", 2, "want path=source"},
		"bad label":       {[]string{"--label", "x"}, "", 2, "want name=value"},
		"bad epoch":       {good, "noon", 2, "SOURCE_DATE_EPOCH"},
		"missing source":  {[]string{"--ref", "i:1", "--file", "/i=" + bin + "-not", "-o", out}, "", 1, "no such file"},
		"bad destination": {append(good[:8:8], "-o", filepath.Join(dir, "no", "out.tar")), "", 1, "create archive"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(tc.args, func(string) string { return tc.epoch }, &stdout, &stderr)
			if said := stdout.String() + stderr.String(); code != tc.code || !strings.Contains(said, tc.says) {
				t.Errorf("exit %d, said %q; want %d, %q", code, said, tc.code, tc.says)
			}
		})
	}
	if _, err := os.Stat(out); err != nil {
		t.Error(err)
	}
}
