package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const list = `
# a comment
p\.TestKernel.*   needs v[12]
p/q\.TestSome/one   run it
`

func TestRun(t *testing.T) {
	name := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(name, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	output := func(test, text string) string {
		return `{"Action":"output","Package":"m/p","Test":"` + test + `","Output":"` + text + `\n"}` + "\n"
	}
	end := func(action, test string) string {
		return `{"Action":"` + action + `","Package":"m/p","Test":"` + test + `"}` + "\n"
	}
	passed := output("TestA", "=== RUN   TestA") + output("TestA", "    said by A") + output("TestA", "--- PASS: TestA (0.00s)") + end("pass", "TestA")
	skip := func(test, reason string) string {
		return output(test, "=== RUN   "+test) + output(test, "    x_test.go:1: "+reason) + output(test, "--- SKIP: "+test+" (0.00s)") + end("skip", test)
	}
	ok := output("", "PASS") + output("", `ok  \tm/p\t0.1s`) + end("pass", "")
	for title, tc := range map[string]struct {
		in       string
		code     int
		says     []string
		saysNot  []string
		complain string
	}{
		"all pass": {passed + ok, 0, []string{"ok  \tm/p\t0.1s\n", "tests: 1, skipped: 0"}, []string{"said by A", "PASS", "not on the list"}, ""},
		"a skip on the list": {passed + skip("TestKernelOOM/x", "needs v2: v1 has none") + ok, 0, []string{"tests: 2, skipped: 1"},
			[]string{"not on the list", "needs v2"}, ""},
		"a skip for another reason": {passed + skip("TestKernelOOM", "needs root") + ok, 1,
			[]string{"not on the list " + name + ": p.TestKernelOOM: x_test.go:1: needs root\n"}, nil, ""},
		"a skip of another test":     {passed + skip("TestOther", "needs v1") + ok, 1, []string{"p.TestOther: x_test.go:1: needs v1"}, nil, ""},
		"a name that only begins so": {passed + strings.ReplaceAll(skip("TestSome/one/two", "run it"), "m/p", "m/p/q") + ok, 1, []string{"p/q.TestSome/one/two"}, nil, ""},
		"the name in whole":          {passed + strings.ReplaceAll(skip("TestSome/one", "run it"), "m/p", "m/p/q") + ok, 0, nil, []string{"not on the list"}, ""},
		"a skip without a reason":    {passed + end("skip", "TestKernelOOM") + ok, 1, []string{"p.TestKernelOOM: \n"}, nil, ""},
		"a failure": {passed + output("TestB", "    said by B") + output("TestB", "--- FAIL: TestB (0.00s)") + end("fail", "TestB") +
			output("", "FAIL") + output("", `FAIL\tm/p\t0.1s`) + end("fail", ""), 1, []string{"    said by B\n--- FAIL: TestB", "FAIL\tm/p\t0.1s"}, []string{"said by A"}, ""},
		"a crash, after which no test has a verdict": {output("TestB", "panic: boom") + output("", `FAIL\tm/p\t0.1s`) + end("fail", ""), 1, []string{"panic: boom\nFAIL\tm/p"}, nil, ""},
		"a build that fails": {`{"ImportPath":"m/p","Action":"build-output","Output":"x.go:1: undefined: y\n"}` + "\n" + `{"ImportPath":"m/p","Action":"build-fail"}` + "\n",
			1, []string{"x.go:1: undefined: y\n"}, nil, ""},
		"no package with tests": {output("", `?   \tm/p\t[no test files]`) + end("skip", "") + "go: a warning\n", 1,
			[]string{"?   \tm/p\t[no test files]\n", "go: a warning\n"}, []string{"not on the list"}, "no test has run"},
		"nothing": {"", 1, nil, nil, "no test has run"},
	} {
		t.Run(title, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := run([]string{name}, strings.NewReader(tc.in), &out, &errs)
			if code != tc.code || !strings.Contains(errs.String(), tc.complain) {
				t.Errorf("exit code %d, want %d: %s\n%s", code, tc.code, errs.String(), out.String())
			}
			for _, want := range tc.says {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in\n%s", want, out.String())
				}
			}
			for _, not := range tc.saysNot {
				if strings.Contains(out.String(), not) {
					t.Errorf("%q is in\n%s", not, out.String())
				}
			}
		})
	}
}

func TestListRefused(t *testing.T) {
	for _, text := range []string{"p.TestA", "p.TestA(  reason", "p.TestA  re(ason"} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
	var errs bytes.Buffer
	if code := run([]string{filepath.Join(t.TempDir(), "none")}, strings.NewReader(""), &errs, &errs); code != 2 {
		t.Errorf("a list that is not there: exit code %d: %s", code, errs.String())
	}
}
