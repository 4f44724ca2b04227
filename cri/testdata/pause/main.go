// Command pause is the only program of the image in the containerd tests. Without arguments it waits for SIGTERM, and ends
// with code 0. "end N" ends at once with code N, "term N" when SIGTERM comes, and "eat" takes memory until it is killed.
package main

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

var held [][]byte

func main() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	what, code := "", 0
	if len(os.Args) > 1 {
		what = os.Args[1]
	}
	if len(os.Args) > 2 {
		var err error
		if code, err = strconv.Atoi(os.Args[2]); err != nil {
			os.Exit(2)
		}
	}
	switch what {
	case "end":
		os.Exit(code)
	case "eat":
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			held = append(held, b)
		}
	}
	<-c
	os.Exit(code)
}
