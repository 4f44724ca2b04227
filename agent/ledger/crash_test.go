package ledger

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	crashFolder = "SPILLWAY_LEDGER_CRASH_TEST"
	openFolder  = "SPILLWAY_LEDGER_OPEN_TEST"
)

// TestMain makes the test binary the writer that TestKilled kills, or an agent that opens a ledger and ends.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashFolder); dir != "" {
		fmt.Fprintln(os.Stderr, writeForever(dir))
		os.Exit(1)
	}
	if dir := os.Getenv(openFolder); dir != "" {
		if err := openOnce(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var crashBounds = Bounds{Records: 100_000, Bytes: 8 << 20, Age: 24 * time.Hour}

// writeForever appends records and saves documents and says which were confirmed.
func writeForever(dir string) error {
	l, err := Open(Options{Dir: dir})
	if err != nil {
		return err
	}
	if l.SetAside() != "" || l.Fault() != "" {
		return fmt.Errorf("set aside %q, fault %q", l.SetAside(), l.Fault())
	}
	g, err := l.Log("kills", crashBounds)
	if err != nil {
		return err
	}
	events, err := l.Log("events", crashBounds)
	if err != nil {
		return err
	}
	go l.Run(context.Background())
	for !l.running.Load() {
		runtime.Gosched()
	}
	data, _, err := l.Document("n").Load()
	if err != nil {
		return err
	}
	first, _ := strconv.Atoi(string(data)) // 0 at first
	for n := first + 1; ; n++ {
		if !g.Append(time.Now(), []byte(fmt.Sprintf("%d %s", n, strings.Repeat("r", n%700))), nil) {
			return errors.New("dropped")
		}
		if !events.Append(time.Now(), []byte(strconv.Itoa(n)), func(id uint64, err error) {
			if err == nil {
				fmt.Printf("event %d %d\n", id, n)
			}
		}) {
			return errors.New("dropped")
		}
		for name, text := range map[string]string{"n": strconv.Itoa(n), "pad": strings.Repeat("p", n*7919%30_000)} {
			if err := l.Document(name).Save([]byte(text)); err != nil {
				return err
			}
		}
		fmt.Println(n)
	}
}

// A process that is killed in the midst of writing loses nothing that was confirmed.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	confirmed, recorded := 0, map[uint64]string{}
	for life := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashFolder+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, read := bufio.NewScanner(out), 0
		for lines.Scan() {
			if id, n, ok := eventLine(lines.Text()); ok {
				recorded[id] = n
				continue
			}
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Fatalf("%q", lines.Text())
			}
			confirmed = n
			if read++; read == 3+7*life {
				go cmd.Process.Kill() // while it writes on; what it still said is read to the end
			}
		}
		cmd.Wait()
		if stderr.Len() > 0 {
			t.Fatalf("life %d: %s", life, &stderr)
		}
		l, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		data, lost, err := l.Document("n").Load()
		if n, aerr := strconv.Atoi(string(data)); err != nil || aerr != nil || lost != "" || n < confirmed || n > confirmed+1 || l.SetAside() != "" {
			t.Fatalf("life %d: %q of %d, lost %q, set aside %q, %v, %v", life, data, confirmed, lost, l.SetAside(), err, aerr)
		}
		g := logOf(t, l, "kills", crashBounds)
		all := newest(t, g, 1<<20)
		there, ids := map[string]bool{}, map[uint64]bool{}
		for _, r := range all {
			n, _, _ := strings.Cut(string(r.Data), " ")
			there[n], ids[r.ID] = true, true
		}
		for n := 1; n <= confirmed; n++ {
			if !there[strconv.Itoa(n)] {
				t.Errorf("life %d: record %d of %d is not there", life, n, confirmed)
			}
		}
		if len(ids) != len(all) {
			t.Errorf("life %d: %d IDs for %d records", life, len(ids), len(all))
		}
		events := logOf(t, l, "events", crashBounds)
		for id, n := range recorded {
			if r, ok, err := events.Get(id); !ok || err != nil || string(r.Data) != n {
				t.Errorf("life %d: event %d, said to be recorded as %s, is %q, %v, %v", life, id, n, r.Data, ok, err)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d writes and %d events confirmed in 12 lives", confirmed, len(recorded))
}

// eventLine reads a line of a record that was said to be on disk.
func eventLine(line string) (id uint64, n string, ok bool) {
	words := strings.Fields(line)
	if len(words) != 3 || words[0] != "event" {
		return 0, "", false
	}
	id, err := strconv.ParseUint(words[1], 10, 64)
	return id, words[2], err == nil
}

// onDisk runs f with a disk of so many bytes.
func onDisk(t *testing.T, size int, f func(dir string, remount func(flags uintptr) error)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small tmpfs in a mount namespace of its own")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine, and the namespace with it
		dir := t.TempDir()
		if err := errors.Join(syscall.Unshare(syscall.CLONE_NEWNS), syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
			syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size))); err != nil {
			t.Errorf("mount: %v", err)
			return
		}
		defer syscall.Unmount(dir, syscall.MNT_DETACH)
		f(dir, func(flags uintptr) error {
			return syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|flags, fmt.Sprintf("size=%d", size))
		})
	}()
	<-done
}

// A full disk fails the write and nothing else; with room again all goes on.
func TestFullDisk(t *testing.T) {
	onDisk(t, 256<<10, func(dir string, _ func(uintptr) error) {
		l := begin(t, Options{Dir: dir})
		defer l.Close()
		save(t, l, "a", "1")
		filler := filepath.Join(dir, "filler")
		if err := os.WriteFile(filler, make([]byte, 256<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("fill: %v", err)
			return
		}
		for range 3 {
			if err := l.Document("a").Save(make([]byte, 100<<10)); !errors.Is(err, syscall.ENOSPC) || l.Fault() == "" {
				t.Errorf("%v, fault %q", err, l.Fault())
			}
		}
		want(t, l, "a", "1")
		if err := os.Remove(filler); err != nil {
			t.Error(err)
		}
		save(t, l, "a", "2")
		l.Close()
		l = begin(t, Options{Dir: dir})
		defer l.Close()
		want(t, l, "a", "2")
		if l.SetAside() != "" {
			t.Errorf("set aside %s", l.SetAside())
		}
	})
}

// On a disk that cannot be written nothing is kept, and each write says so; when it can be written again, it is.
func TestReadOnlyDisk(t *testing.T) {
	onDisk(t, 1<<20, func(dir string, remount func(uintptr) error) {
		if err := remount(syscall.MS_RDONLY); err != nil {
			t.Error(err)
			return
		}
		l := begin(t, Options{Dir: dir})
		defer l.Close()
		if _, _, err := l.Document("a").Load(); !errors.Is(err, syscall.EROFS) || l.Fault() == "" {
			t.Errorf("load: %v, fault %q", err, l.Fault())
		}
		if err := l.Document("a").Save([]byte("1")); !errors.Is(err, syscall.EROFS) {
			t.Errorf("save: %v", err)
		}
		if err := remount(0); err != nil {
			t.Error(err)
			return
		}
		save(t, l, "a", "2")
		want(t, l, "a", "2")
		if l.Fault() != "" {
			t.Errorf("fault %q", l.Fault())
		}
	})
}

// BenchmarkSave compares a commit with what it replaces: a file that is written beside the old one, synced, renamed, synced.
// ratio is the commit's time over the file's, both on the disk of $SPILLWAY_BENCH_DIR or of the temporary folder.
func BenchmarkSave(b *testing.B) {
	dir, err := os.MkdirTemp(os.Getenv("SPILLWAY_BENCH_DIR"), "ledger-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l := begin(b, Options{Dir: dir})
	data, err := json.Marshal(strings.Repeat("h", 8000)) // some dozens of evictions
	if err != nil {
		b.Fatal(err)
	}
	d := l.Document("evictions")
	var commit, file time.Duration
	for b.Loop() {
		began := time.Now()
		if err := d.Save(data); err != nil {
			b.Fatal(err)
		}
		between := time.Now()
		if err := replaceFile(filepath.Join(dir, "evictions.json"), data); err != nil {
			b.Fatal(err)
		}
		commit += between.Sub(began)
		file += time.Since(between)
	}
	b.ReportMetric(float64(commit.Microseconds())/float64(b.N), "commit-µs")
	b.ReportMetric(float64(file.Microseconds())/float64(b.N), "file-µs")
	b.ReportMetric(float64(commit)/float64(file), "ratio")
}

func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".evictions-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}
