// Package program is what the main functions of the fleet's services have in common:
// when they end, and a command line of --config, --check and --version.
//
//	func main() { program.Main(run) }
//
//	func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
//		service := program.Service{Name: "fleet-agent", Usage: usage, Checks: true}
//		line, code, done := service.Parse(args, stdout, stderr)
//		if done {
//			return code
//		}
//		…
package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/harmony-fleet/fleet/internal/version"
)

// Main runs a program until it ends, and the process with its exit code. ctx ends with
// the first SIGINT or SIGTERM; a second one ends the process at once.
func Main(run func(ctx context.Context, args []string, stdout, stderr io.Writer) int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Line is a command line.
type Line struct {
	// Config is the file of --config, which is always given.
	Config string
	// Check says to check the configuration only.
	Check bool
}

// Service is a program that is told all but these flags by its configuration.
type Service struct {
	Name   string
	Usage  string // what --help prints
	Checks bool   // it has --check
}

// Parse reads the command line. Where there is nothing more to do,
// done is true and code the exit code: 0 after --help and --version, 2 for what is
// wrong, which it has said together with the usage.
func (s Service) Parse(args []string, stdout, stderr io.Writer) (line Line, code int, done bool) {
	flags := flag.NewFlagSet(s.Name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&line.Config, "config", "", "")
	if s.Checks {
		flags.BoolVar(&line.Check, "check", false, "")
	}
	showVersion := flags.Bool("version", false, "")
	wrong := func(format string, args ...any) (Line, int, bool) {
		fmt.Fprintf(stderr, "%s: %s\n\n%s", s.Name, fmt.Sprintf(format, args...), s.Usage)
		return Line{}, 2, true
	}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, s.Usage)
		return Line{}, 0, true
	case err != nil:
		return wrong("%v", err)
	case *showVersion:
		fmt.Fprintln(stdout, s.Name, version.String())
		return Line{}, 0, true
	case flags.NArg() > 0:
		return wrong("unexpected argument %q", flags.Arg(0))
	case line.Config == "":
		return wrong("--config is needed")
	}
	return line, 0, false
}
