package main

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestMain lets a test run this binary as the program itself.
func TestMain(m *testing.M) {
	if os.Getenv("WORKLOAD_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func program(t *testing.T, args ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "WORKLOAD_TEST_MAIN=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "3Ki": 3072, "100Mi": 100 << 20, "2Gi": 2 << 30, "8589934591Gi": 8589934591 << 30,
		"": -1, "Mi": -1, "-1": -1, "1.5Gi": -1, "1G": -1, "8589934592Gi": -1, "1MiMi": -1, " 1": -1,
	} {
		got, err := parseSize(text)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	f.Add("1Ki")
	f.Add("9223372036854775807")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parseSize(text)
		if err == nil && v < 0 {
			t.Errorf("parseSize(%q) = %d", text, v)
		}
	})
}

// resident is this process's resident anonymous memory in bytes.
func resident(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "RssAnon:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("no RssAnon in /proc/self/status")
	return 0
}

// TestRegionIsResident compares what a region says with what the kernel says, up and down.
func TestRegionIsResident(t *testing.T) {
	var r region
	before := resident(t)
	for _, want := range []int64{1 << 20, 40 << 20, 100<<20 + 1, 33 << 20, 32 << 20, 64 << 20, 0} {
		if err := r.resize(want); err != nil {
			t.Fatal(err)
		}
		if r.held < want || r.held >= want+4096 {
			t.Errorf("holds %d, want %d to the page", r.held, want)
		}
		// The test's own heap moves a little.
		if got := resident(t) - before; got < want-(4<<20) || got > want+(4<<20) {
			t.Errorf("resident memory rose by %d, want %d", got, want)
		}
	}
}

// TestGrowthFollowsTheClock asks for odd sizes and rates and looks at every step.
func TestGrowthFollowsTheClock(t *testing.T) {
	for name, tc := range map[string]struct {
		from, to, rate int64
		want           time.Duration
	}{
		"grows":            {0, 10 << 20, 5 << 20, 2 * time.Second},
		"from a base":      {4 << 20, 10 << 20, 3 << 20, 2 * time.Second},
		"shrinks":          {8 << 20, 2 << 20, 3 << 20, 2 * time.Second},
		"is there already": {1 << 20, 1 << 20, 1 << 20, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r region
				defer func() { _ = r.resize(0) }()
				if err := r.resize(tc.from); err != nil {
					t.Fatal(err)
				}
				start, seen, last := time.Now(), 0, time.Now()
				rep := &report{}
				rep.w = writer(func() {
					rep.due = time.Time{} // report every step
					now := time.Now()
					d := int64(now.Sub(start).Seconds() * float64(tc.rate))
					want := min(tc.from+d, tc.to)
					if tc.to < tc.from {
						want = max(tc.from-d, tc.to)
					}
					if off := r.held - want; off < 0 || off >= 4096 {
						t.Errorf("after %v holds %d, want %d to the page", now.Sub(start), r.held, want)
					}
					if now.Sub(last) > 20*time.Millisecond {
						t.Errorf("no growth for %v", now.Sub(last))
					}
					seen, last = seen+1, now
				})
				if err := grow(t.Context(), &r, rep, tc.to, tc.rate, 0); err != nil {
					t.Fatal(err)
				}
				if least := int(tc.want / (20 * time.Millisecond)); seen < least {
					t.Errorf("%d steps, want at least %d", seen, least)
				}
				if got := time.Since(start); got < tc.want || got > tc.want+step {
					t.Errorf("took %v, want %v", got, tc.want)
				}
			})
		})
	}
}

type writer func()

func (w writer) Write(b []byte) (int, error) {
	w()
	return len(b), nil
}

func TestSIGTERM(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		deaf bool
	}{
		"leak obeys":        {[]string{"leak", "--rate", "1Mi"}, false},
		"leak waits, obeys": {[]string{"leak", "--rate", "1Mi", "--delay", "1h", "--hold", "1Mi"}, false},
		"hold obeys":        {[]string{"hold", "1Mi"}, false},
		"leak ignores":      {[]string{"leak", "--rate", "1Mi", "--ignore-sigterm"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, out := program(t, tc.args...)
			if _, err := out.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if tc.deaf {
				if _, err := out.ReadString('\n'); err != nil { // another second of life
					t.Fatalf("ended at SIGTERM: %v", err)
				}
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				return
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("exit: %v", err)
			}
		})
	}
}

// TestChildDiesParentStays kills the allocating child as the kernel would.
func TestChildDiesParentStays(t *testing.T) {
	cmd, out := program(t, "alloc", "--child", "1Mi")
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(line)
	if len(f) < 2 || f[0] != "child" {
		t.Fatalf("said %q", line)
	}
	pid, err := strconv.Atoi(f[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(line, "ended: signal: killed") {
		if line, err = out.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	if line, err = out.ReadString('\n'); err != nil || !strings.Contains(line, "held 0 bytes") {
		t.Fatalf("parent said %q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
}

func TestRereadMakesTheFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	_, out := program(t, "reread", "--file", name, "--size", "3Mi")
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(line)
	read, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || read <= 3<<20 {
		t.Errorf("said %q: want more read than the file holds", line)
	}
	if fi, err := os.Stat(name); err != nil || fi.Size() != 3<<20 {
		t.Errorf("file: %v, %v", fi, err)
	}
}

func TestUsage(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing":         {nil, 2, "workload pause"},
		"unknown":         {[]string{"grow"}, 2, "unknown command"},
		"hold no size":    {[]string{"hold"}, 2, "want 1 arguments"},
		"hold bad size":   {[]string{"hold", "1.5Gi"}, 2, "parse size"},
		"leak no rate":    {[]string{"leak"}, 2, "--rate"},
		"leak low limit":  {[]string{"leak", "--rate", "1", "--hold", "2", "--limit", "1"}, 2, "--limit is under"},
		"reread no file":  {[]string{"reread", "--size", "1"}, 2, "--file and --size"},
		"reread bad file": {[]string{"reread", "--size", "1", "--file", "/proc/none/x"}, 1, "make file"},
		"sawtooth":        {[]string{"sawtooth", "--rate", "1"}, 2, "--high above --low"},
		"burst too long":  {[]string{"burst", "--size", "1", "--stay", "2s", "--every", "1s"}, 2, "--every above --stay"},
		"leak then":       {[]string{"leak", "--rate", "1", "--then", "2"}, 2, "--then and --after"},
		"forks":           {[]string{"forks"}, 2, "--rate"},
		"bad flag":        {[]string{"alloc", "--x"}, 2, "-x"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), tc.args, &stdout, &stderr)
			if code != tc.code || !strings.Contains(stderr.String(), tc.says) {
				t.Errorf("exit %d, said %q; want %d, %q", code, stderr.String(), tc.code, tc.says)
			}
		})
	}
}

// TestLeakLeaves: where the node has less than that left, nothing more is taken.
func TestLeakLeaves(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(1500*time.Millisecond, cancel)
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"leak", "--rate", "1Gi", "--hold", "1Mi", "--leave", "100000Gi"}, &out, &errs); code != 0 {
		t.Fatalf("%d: %s", code, &errs)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) < 2 || slices.ContainsFunc(lines, func(l string) bool { return !strings.HasSuffix(l, "held 1048576 bytes (1.0 MiB)") }) {
		t.Errorf("%q", lines)
	}
}

// TestRounds: bursts and teeth are played, then the program waits for its file, and plays on when it is there.
func TestRounds(t *testing.T) {
	for name, args := range map[string][]string{
		"burst":    {"burst", "--size", "1Mi", "--stay", "100ms", "--every", "1100ms"},
		"sawtooth": {"sawtooth", "--low", "0", "--high", "1Mi", "--rate", "1Mi"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "go")
			_, out := program(t, append(args, "--first", "2", "--wait-for", file)...)
			var held, waits, again int
			for again == 0 {
				line, err := out.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				switch waiting := strings.HasSuffix(line, "held 0 bytes (0.0 MiB), waits after 2 rounds\n"); {
				case waiting:
					if waits++; waits == 2 {
						if err := os.WriteFile(file, nil, 0o600); err != nil {
							t.Fatal(err)
						}
					}
				case waits == 0:
					held++
				default:
					again++
				}
			}
			if held < 2 || waits < 2 {
				t.Errorf("%d lines of the first rounds, %d of the wait, want two of each at least", held, waits)
			}
		})
	}
}

// TestBurstKeeps: what is kept adds up to the limit.
func TestBurstKeeps(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(3500*time.Millisecond, cancel)
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"burst", "--size", "2Mi", "--every", "1s", "--keep", "--limit", "5Mi"}, &out, &errs); code != 0 {
		t.Fatalf("%d: %s", code, &errs)
	}
	for _, want := range []string{"held 2097152 bytes", "held 4194304 bytes", "held 5242880 bytes"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q was never said:\n%s", want, &out)
		}
	}
}

// TestLeakSpeedsUp: it grows slowly for a while and fast from there on.
func TestLeakSpeedsUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var out, errs bytes.Buffer
	time.AfterFunc(4500*time.Millisecond, cancel)
	if code := run(ctx, []string{"leak", "--rate", "1Mi", "--then", "10Mi", "--after", "2s", "--limit", "9Mi"}, &out, &errs); code != 0 {
		t.Fatalf("%d: %s", code, &errs)
	}
	var mib []float64
	for line := range strings.Lines(out.String()) {
		text, _, _ := strings.Cut(line[strings.Index(line, "(")+1:], " ")
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		mib = append(mib, n)
	}
	if len(mib) < 4 || mib[1] < 0.9 || mib[1] > 1.5 || mib[3] != 9 {
		t.Errorf("held %v MiB after each second, want about 1 after one and 9 after three", mib)
	}
}
