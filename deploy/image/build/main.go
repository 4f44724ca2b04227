// Command build writes an OCI image archive from files on disk:
//
//	build --ref localhost/spillway:dev --file /spillway=bin/spillway --entrypoint /spillway --cmd agent -o out/spillway.tar
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"spillway/deploy/image"
)

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	var o image.Options
	var output string
	fs := flag.NewFlagSet("build", flag.ContinueOnError)
	fs.SetOutput(stderr)
	list := func(dst *[]string) func(string) error {
		return func(s string) error { *dst = append(*dst, s); return nil }
	}
	fs.StringVar(&o.Ref, "ref", "", "image `name:tag`")
	fs.StringVar(&output, "o", "", "archive to write")
	fs.StringVar(&o.Arch, "arch", "amd64", "GOARCH of the files")
	fs.StringVar(&o.User, "user", "", "user[:group] to run as")
	fs.Func("file", "`path=source`, may be repeated", func(s string) error {
		dst, src, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want path=source")
		}
		o.Files = append(o.Files, image.File{Path: dst, Source: src})
		return nil
	})
	fs.Func("entrypoint", "one `word` of the entry point, may be repeated", list(&o.Entrypoint))
	fs.Func("cmd", "one `word` of the default arguments, may be repeated", list(&o.Cmd))
	fs.Func("label", "`name=value`, may be repeated", func(s string) error {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want name=value")
		}
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[k] = v
		return nil
	})
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if output == "" || fs.NArg() > 0 {
		fmt.Fprintln(stderr, "build: -o is needed, and nothing but flags")
		return 2
	}
	// The convention of reproducible-builds.org for the one time that a build may show.
	if s := getenv("SOURCE_DATE_EPOCH"); s != "" {
		sec, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			fmt.Fprintf(stderr, "build: parse SOURCE_DATE_EPOCH %q: %v\n", s, err)
			return 2
		}
		o.Created = time.Unix(sec, 0)
	}
	h, err := image.WriteFile(output, o)
	if err != nil {
		fmt.Fprintln(stderr, "build:", err)
		return 1
	}
	fmt.Fprintln(stdout, h)
	return 0
}
