// Command fleet is the command line of Harmony Fleet: it runs a whole fleet on
// one machine (fleet up) and commands devices (fleet ping, …). docs/cli.md
// describes every command, flag and exit code.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/harmony-fleet/fleet/internal/cli"
)

func main() {
	// A reader of stdout that goes away (fleet up | head) is an error of the write,
	// which ends the command in order and in silence, and not the end of the process.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// After the first signal the next one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
