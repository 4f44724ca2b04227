package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"time"
)

const postgresPrograms = "/usr/lib/postgresql/*/bin/"

var postgresNeeds = []need{{postgresPrograms + "postgres", "postgresql"}, {postgresPrograms + "initdb", "postgresql"}, {"psql", "postgresql-client"}, {"setpriv", "util-linux"}}

// initdb makes an empty database of the user postgres, in the box's folder.
func initdb(ctx context.Context, b *box) error {
	u, err := user.Lookup(b.user)
	if err != nil {
		return fmt.Errorf("%w; apt-get install postgresql", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return fmt.Errorf("user %s: %w", b.user, err)
	}
	data := b.file("data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	for _, dir := range []string{data, b.dir} {
		if err := os.Chown(dir, uid, -1); err != nil {
			return fmt.Errorf("give folder to %s: %w", b.user, err)
		}
	}
	program, err := postgresNeeds[1].find()
	if err != nil {
		return err
	}
	_, err = b.outside(ctx, program, "-D", data, "-A", "trust", "-U", "postgres", "--no-sync")
	return err
}

// startPostgres starts the server on a socket in the box's folder, makes a table, and marks the begin before that.
func startPostgres(ctx context.Context, b *box, rows int) (context.Context, error) {
	program, err := postgresNeeds[0].find()
	if err != nil {
		return ctx, err
	}
	ctx, err = b.serve(ctx, program, "-D", b.file("data"), "-k", b.dir, "-c", "listen_addresses=", "-c", "shared_buffers=128MB", "-c", "work_mem=1GB",
		"-c", "max_parallel_workers_per_gather=0", "-c", "jit=off", "-c", "fsync=off", "-c", "autovacuum=off")
	if err != nil {
		return ctx, err
	}
	if err := until(ctx, "wait for PostgreSQL", 30*time.Second, func() bool {
		_, err := b.outside(ctx, "psql", b.psql("-c", "SELECT 1")...)
		return err == nil
	}); err != nil {
		return ctx, err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return ctx, err
	}
	b.mark()
	if err := pause(ctx, 2*time.Second); err != nil {
		return ctx, err
	}
	err = b.sql(ctx, fmt.Sprintf("SELECT setseed(0.5); CREATE TABLE t AS SELECT i AS id, md5(random()::text) || md5(i::text) AS v FROM generate_series(1, %d) AS i", rows))
	if err != nil {
		return ctx, err
	}
	return ctx, pause(ctx, 4*time.Second)
}

func (b *box) psql(args ...string) []string {
	return append([]string{"-h", b.dir, "-U", "postgres", "-X", "-q", "-v", "ON_ERROR_STOP=1"}, args...)
}

// sql runs statements in a session of its own, outside of the cgroup: the client is another pod.
func (b *box) sql(ctx context.Context, statements string) error {
	_, err := b.outside(ctx, "psql", b.psql("-c", statements)...)
	return err
}

// session runs statements and keeps the session open until the box is closed.
func (b *box) session(ctx context.Context, statements string) error {
	args := append([]string{"--reuid", b.user, "--regid", b.user, "--clear-groups", "psql"}, b.psql()...)
	c := exec.CommandContext(ctx, "setpriv", args...)
	c.Dir, c.Stderr, c.WaitDelay = b.dir, b, 5*time.Second
	in, err := c.StdinPipe()
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	b.servers.Go(func() { _ = c.Wait() }) // its end says nothing
	if _, err := io.WriteString(in, statements); err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	b.open = append(b.open, in)
	return nil
}

func postgresSort(ctx context.Context, b *box) error {
	server, err := startPostgres(ctx, b, 2_500_000)
	if err != nil {
		return err
	}
	for range 2 {
		if err := b.sql(server, "SELECT count(*) FROM (SELECT v FROM t ORDER BY v OFFSET 0) AS s"); err != nil {
			return err
		}
		if err := pause(server, 8*time.Second); err != nil {
			return err
		}
	}
	return nil
}

// postgresLeak is a client whose pool loses sessions: each keeps its transaction open, and with it what its sort took.
func postgresLeak(ctx context.Context, b *box) error {
	server, err := startPostgres(ctx, b, 400_000)
	if err != nil {
		return err
	}
	for range 16 {
		err := b.session(server, "BEGIN; DECLARE c CURSOR FOR SELECT * FROM t ORDER BY v; FETCH 1 FROM c;\n")
		if err != nil {
			return err
		}
		if err := pause(server, 5*time.Second); err != nil {
			return err
		}
	}
	return nil
}
