package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"spillway/test/apps/curve"
)

const mib = 1 << 20

var (
	java   = need{"java", "openjdk-17-jre-headless"}
	javac  = need{"javac", "openjdk-17-jdk-headless"}
	golang = need{"go", "golang-go"}
	node   = need{"node", "nodejs"}
	python = need{"/usr/bin/python3", "python3"}
	tar    = need{"tar", "tar"}
	gnu    = need{"sort", "coreutils"}
)

// apps are the applications, bounded ones first.
var apps = []app{
	{
		name: "jvm-heap", application: "JVM", what: "starts, fills a bounded cache and serves", end: curve.Stays, needs: []need{java, javac},
		command: "java -Xms64m -Xmx800m Heap serve", version: []string{"java", "--version"}, most: 2 * time.Minute,
		prepare: compile, play: serves(80*time.Second, "java", "-Xms64m", "-Xmx800m", "Heap", "serve"),
	},
	{
		name: "jvm-leak", application: "JVM", what: "keeps a part of each request", end: curve.Leak, needs: []need{java, javac},
		command: "java -Xms64m -Xmx1800m Heap leak", version: []string{"java", "--version"}, most: 2 * time.Minute,
		prepare: compile, play: serves(70*time.Second, "java", "-Xms64m", "-Xmx1800m", "Heap", "leak"),
	},
	{
		name: "go-build", application: "go build", what: "builds a large program without a cache", end: curve.Done, needs: []need{golang},
		command: "go build -p 2 std cmd/compile, with an empty GOCACHE", version: []string{"go", "version"}, most: 6 * time.Minute, play: goBuild,
	},
	{
		name: "postgres-sort", application: "PostgreSQL", what: "loads a table and sorts it twice in memory", end: curve.Stays, needs: postgresNeeds, user: "postgres",
		command: "SELECT ... ORDER BY with work_mem of 1 GB, shared_buffers of 128 MB", version: []string{"psql", "--version"}, most: 3 * time.Minute, prepare: initdb, play: postgresSort,
	},
	{
		name: "postgres-leak", application: "PostgreSQL", what: "sessions keep cursors over sorts open", end: curve.Leak, needs: postgresNeeds, user: "postgres",
		command: "DECLARE ... CURSOR FOR SELECT ... ORDER BY with work_mem of 1 GB, a new session each 5 s", version: []string{"psql", "--version"}, most: 3 * time.Minute, prepare: initdb, play: postgresLeak,
	},
	{
		name: "redis-save", application: "Redis", what: "is filled, and saves twice in the background under writes", end: curve.Stays, needs: redisNeeds,
		command: "redis-server --save ''; SET of 600 MiB, then BGSAVE during SET of 60 MiB/s", version: []string{"redis-server", "--version"}, most: 3 * time.Minute, play: redisSave(2),
	},
	{
		name: "redis-leak", application: "Redis", what: "is filled by a client without end", end: curve.Leak, needs: redisNeeds,
		command: "redis-server --save ''; SET of 25 MiB/s", version: []string{"redis-server", "--version"}, most: 2 * time.Minute, play: redisFill(25*mib, 1200*mib),
	},
	{
		name: "node-heap", application: "Node", what: "serves in waves, with garbage that is collected", end: curve.Stays, needs: []need{node},
		command: "node --max-old-space-size=1200 heap.js serve", version: []string{"node", "--version"}, most: 2 * time.Minute, play: script(80*time.Second, node, "--max-old-space-size=1200", "heap.js", "serve"),
	},
	{
		name: "node-leak", application: "Node", what: "keeps a part of each request", end: curve.Leak, needs: []need{node},
		command: "node --max-old-space-size=1800 heap.js leak", version: []string{"node", "--version"}, most: 2 * time.Minute, play: script(60*time.Second, node, "--max-old-space-size=1800", "heap.js", "leak"),
	},
	{
		name: "python-list", application: "Python", what: "builds a large list and releases it, twice", end: curve.Stays, needs: []need{python},
		command: "python3 lists.py release", version: []string{"/usr/bin/python3", "--version"}, most: 2 * time.Minute, play: script(70*time.Second, python, "-u", "lists.py", "release"),
	},
	{
		name: "python-leak", application: "Python", what: "keeps what it computes in a dictionary", end: curve.Leak, needs: []need{python},
		command: "python3 lists.py leak", version: []string{"/usr/bin/python3", "--version"}, most: 2 * time.Minute, play: script(70*time.Second, python, "-u", "lists.py", "leak"),
	},
	{
		name: "chromium-tabs", application: "Chromium", what: "opens eight tabs of a heavy page and closes them", end: curve.Stays, needs: chromiumNeeds,
		command: "chromium --headless --no-sandbox", version: []string{"dpkg-query", "-W", "chromium"}, most: 3 * time.Minute, play: chromiumTabs,
	},
	{
		name: "chromium-leak", application: "Chromium", what: "a page that keeps detached nodes", end: curve.Leak, needs: chromiumNeeds,
		command: "chromium --headless --no-sandbox", version: []string{"dpkg-query", "-W", "chromium"}, most: 3 * time.Minute, play: chromiumLeak,
	},
	{
		name: "tar-files", application: "tar", what: "packs a folder of 500 MiB and compares the archive with it", end: curve.Done, needs: []need{tar},
		command: "tar cf a.tar files && tar df a.tar", version: []string{"tar", "--version"}, most: 3 * time.Minute, prepare: makeFiles, play: tarFiles,
	},
	{
		name: "tar-tmpfs", application: "tar", what: "unpacks 500 MiB into a tmpfs and removes it, twice", end: curve.Stays, needs: []need{tar, {"gzip", "gzip"}},
		command: "tar xzf a.tar.gz -C /dev/shm/...", version: []string{"tar", "--version"}, most: 3 * time.Minute, prepare: makeArchive, play: tarTmpfs,
	},
	{
		name: "sort-file", application: "sort", what: "sorts a file of 900 MiB", end: curve.Done, needs: []need{gnu},
		command: "sort -S 1G --parallel=2 lines", version: []string{"sort", "--version"}, most: 5 * time.Minute, prepare: linesOf(900), play: sortFile("1G"),
	},
}

// serves plays a program that runs on, for a while.
func serves(d time.Duration, program string, args ...string) func(context.Context, *box) error {
	return func(ctx context.Context, b *box) error {
		ctx, err := b.serve(ctx, program, args...)
		if err != nil {
			return err
		}
		return pause(ctx, d)
	}
}

// script plays one of the programs here, which runs on, for a while.
func script(d time.Duration, interpreter need, option, name, arg string) func(context.Context, *box) error {
	return func(ctx context.Context, b *box) error {
		program, err := interpreter.find()
		if err != nil {
			return err
		}
		file, err := b.program(name)
		if err != nil {
			return err
		}
		return serves(d, program, option, file, arg)(ctx, b)
	}
}

func compile(ctx context.Context, b *box) error {
	file, err := b.program("Heap.java")
	if err != nil {
		return err
	}
	_, err = b.outside(ctx, "javac", "-d", b.dir, file)
	return err
}

// goBuild builds the standard library and the compiler. Sources that were read before cost no page cache here.
func goBuild(ctx context.Context, b *box) error {
	return b.run(ctx, "env", "GOCACHE="+b.file("cache"), "GOFLAGS=", "GOPROXY=off", "GOTOOLCHAIN=local", "go", "build", "-p", "2", "-o", b.file("out")+"/", "std", "cmd/compile")
}

// makeFiles makes a folder of 2000 files with 500 MiB in all, which does not compress.
func makeFiles(_ context.Context, b *box) error {
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 2000 {
		path := filepath.Join(b.file("files"), fmt.Sprint(i%40), fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make files: %w", err)
		}
		data := make([]byte, r.IntN(2*500*mib/2000))
		for j := 0; j+8 <= len(data); j += 8 {
			v := r.Uint64()
			for k := range 8 {
				data[j+k] = byte(v >> (8 * k))
			}
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return fmt.Errorf("make files: %w", err)
		}
	}
	return uncache(b.file("files"))
}

func tarFiles(ctx context.Context, b *box) error {
	if err := b.run(ctx, "tar", "cf", "a.tar", "files"); err != nil {
		return err
	}
	if err := pause(ctx, 6*time.Second); err != nil {
		return err
	}
	for range 2 {
		if err := b.run(ctx, "tar", "df", "a.tar"); err != nil {
			return err
		}
		if err := pause(ctx, 6*time.Second); err != nil {
			return err
		}
	}
	return nil
}

func makeArchive(ctx context.Context, b *box) error {
	if err := makeFiles(ctx, b); err != nil {
		return err
	}
	if _, err := b.outside(ctx, "tar", "czf", "a.tar.gz", "files"); err != nil {
		return err
	}
	return uncache(b.dir)
}

// tarTmpfs is a pod that unpacks into a memory-backed volume, works on it and cleans up.
func tarTmpfs(ctx context.Context, b *box) error {
	for range 2 {
		if err := b.run(ctx, "tar", "xzf", "a.tar.gz", "-C", b.memory); err != nil {
			return err
		}
		if err := pause(ctx, 8*time.Second); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(b.memory, "files")); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
		if err := pause(ctx, 8*time.Second); err != nil {
			return err
		}
	}
	return nil
}

// linesOf makes a file of so many MiB: lines of 15 random letters.
func linesOf(size int) func(context.Context, *box) error {
	return func(_ context.Context, b *box) error { return b.lines(size) }
}

func (b *box) lines(size int) error {
	f, err := os.Create(b.file("lines"))
	if err != nil {
		return fmt.Errorf("make lines: %w", err)
	}
	defer f.Close()
	r := rand.New(rand.NewPCG(2, 2))
	block := make([]byte, mib)
	for range size {
		for i := 0; i < len(block); i += 16 {
			v := r.Uint64()
			for j := range 15 {
				block[i+j] = 'a' + byte(v>>(4*j)&15)
			}
			block[i+15] = '\n'
		}
		if _, err := f.Write(block); err != nil {
			return fmt.Errorf("make lines: %w", err)
		}
	}
	return uncache(b.file("lines"))
}

func sortFile(buffer string) func(context.Context, *box) error {
	return func(ctx context.Context, b *box) error {
		return b.run(ctx, "sort", "-S", buffer, "--parallel=2", "-T", b.dir, "-o", b.file("sorted"), b.file("lines"))
	}
}
