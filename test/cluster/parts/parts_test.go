package parts

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func modules(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range all() {
		if err := os.Mkdir(filepath.Join(dir, p.dir), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"go.mod", "go.sum"} {
			if err := os.WriteFile(filepath.Join(dir, p.dir, f), []byte("module "+p.dir+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// TestKeyCoversEveryModuleFile changes one file after the other.
func TestKeyCoversEveryModuleFile(t *testing.T) {
	dir := modules(t)
	seen := map[string]string{}
	note := func(what string) {
		key, err := cacheKey(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[key]; ok {
			t.Errorf("same key for %s and %s", before, what)
		}
		seen[key] = what
	}
	note("the start")
	for _, p := range all() {
		for _, f := range []string{"go.mod", "go.sum"} {
			name := filepath.Join(dir, p.dir, f)
			if err := os.WriteFile(name, []byte("// changed\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			note(p.dir + "/" + f)
		}
	}
	if err := os.Remove(filepath.Join(dir, "etcd", "go.sum")); err != nil {
		t.Fatal(err)
	}
	if _, err := cacheKey(t.Context(), dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: error %v", err)
	}
}

// TestFailedBuildLeavesNothing: the modules here have no packages, so the first build fails.
func TestFailedBuildLeavesNothing(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	var said bytes.Buffer
	_, err := Build(t.Context(), Options{Dir: modules(t), Cache: cache, Progress: &said})
	if err == nil || !strings.Contains(err.Error(), "kube-apiserver") {
		t.Errorf("error %v, want one that names the program", err)
	}
	if !strings.Contains(said.String(), "[1/9] kube-apiserver") {
		t.Errorf("said %q", said.String())
	}
	left, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if !strings.HasSuffix(e.Name(), ".lock") {
			t.Errorf("left %s", e.Name())
		}
	}
}

func TestCompleteCacheIsUsed(t *testing.T) {
	dir, cache := modules(t), t.TempDir()
	key, err := cacheKey(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(cache, "parts-"+key, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range all() {
		for _, pkg := range p.packages {
			if complete(bin) {
				t.Fatalf("complete without %s", p.name(pkg))
			}
			if err := os.WriteFile(filepath.Join(bin, p.name(pkg)), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := Build(t.Context(), Options{Dir: dir, Cache: cache, Progress: os.Stderr})
	if err != nil || got != bin {
		t.Errorf("Build = %q, %v; want %q", got, err, bin)
	}
}

func TestLockExcludes(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	var said bytes.Buffer
	unlock, err := lock(t.Context(), name, &said)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, name, &said); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: %v", err)
	}
	if !strings.Contains(said.String(), "waiting for another build") {
		t.Errorf("said %q", said.String())
	}
	unlock()
	unlock, err = lock(t.Context(), name, &said)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
