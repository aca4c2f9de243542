// Package cli is the `fleet` command: one file per sub-command, each with a
// private struct that holds its flags and a method that acts.
//
//	os.Exit(cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr))
//
// Results go to stdout, as text or as one JSON object per line; errors and
// progress go to stderr. How a command ended is its exit code, the table of
// docs/cli.md; a reader of stdout that goes away ends it without a word
// (output.go). How to connect is settled in conn.go: flags, then environment,
// then the context file that `fleet up` writes (contextfile.go). What a client
// knows of a command and no device can, such as that a device was offline, is
// kept in a log of the user's own (commandlog.go).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/command"
)

func init() {
	// In the order in which a person meets them; see commands.
	cobra.EnableCommandSorting = false
}

// app is what the commands of one invocation share.
type app struct {
	stdin          *os.File
	stdout, stderr io.Writer
	getenv         func(string) string

	flags   connFlags
	output  string        // text or json
	timeout time.Duration // of one command to one device, and of a connection
	verbose bool

	command string // "fleet ping", for the hint at its help; empty: not known
	started bool   // the command line was understood
	log     *slog.Logger
}

// Main runs one command line and gives its exit code. It ends, with whatever
// it started, when ctx does.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	out := &pipeWriter{Writer: stdout}
	a := &app{stdin: os.Stdin, stdout: out, stderr: stderr, getenv: os.Getenv}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if out.broken.Load() {
		return exitBrokenPipe
	}
	if err == nil {
		return 0
	}
	if !a.started {
		err = usageError{plainUsage(err)}
		a.output = formatOf(args)
	}
	a.command = cmd.CommandPath()
	a.report(err)
	if !a.started && cmd.Annotations[ownCode] != "" && !selected(cmd) {
		return ownFailure
	}
	return exitCode(err)
}

// plainUsage takes the names of Go's own functions out of a fault of a flag.
func plainUsage(err error) error {
	text := parsing.ReplaceAllString(err.Error(), "")
	text = strings.ReplaceAll(text, "flag: time: missing unit in duration", "flag: a duration has a unit, as in 5s or 1h: not")
	text = strings.ReplaceAll(text, "flag: time: invalid duration", "flag: a duration is like 5s or 1h: not")
	return errors.New(text)
}

var parsing = regexp.MustCompile(`strconv\.Parse\w+: parsing "[^"]*": `)

// formatOf is the format that a command line asks for which could not be read:
// its errors are to come in that format all the same.
func formatOf(args []string) string {
	output := ""
	for i, arg := range args {
		if arg == "--" {
			break
		}
		value, ok := strings.CutPrefix(arg, "--output=")
		switch {
		case ok:
		case (arg == "-o" || arg == "--output") && i+1 < len(args):
			value = args[i+1]
		case strings.HasPrefix(arg, "-o"):
			value = strings.TrimPrefix(arg[len("-o"):], "=")
		default:
			continue
		}
		output = value
	}
	return output
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "fleet",
		Short: "Ask devices to do something now, and learn exactly what happened",
		Long: `Harmony Fleet is a command plane for fleets of devices.

  fleet up                      run a whole fleet on this machine
  fleet ping vm-device-00       in another terminal: is it there?

How to connect is taken from flags, then from FLEET_SERVER, FLEET_TOKEN, FLEET_USER and
FLEET_PASSWORD, then from the context file that fleet up writes.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Without a command of its own, help; with something else, an error.
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.command = cmd.CommandPath()
			if err := a.checkGlobal(); err != nil {
				return err
			}
			a.started = true
			return nil
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	f := root.PersistentFlags()
	a.flags.register(f)
	f.StringVarP(&a.output, "output", "o", "text", "`format` of results: text, or json (one object per line on stdout)")
	f.DurationVar(&a.timeout, "timeout", 5*time.Second, "how long to wait for a device or a connection")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log what happens to stderr")
	root.AddCommand(commands(a)...)
	return root
}

// commands are the sub-commands in the order in which a person meets them.
func commands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newUpCommand(a),
		newPingCommand(a),
		newDevicesCommand(a),
		newDeploymentsCommand(a),
		newLogsCommand(a),
		newExecCommand(a),
		newShellCommand(a),
		newResultCommand(a),
		newJobCommand(a),
		newDesiredCommand(a),
		newAuditCommand(a),
		newLabelCommand(a),
		newRolloutCommand(a),
		newProvisionCommand(a),
		newBrokerCommand(a),
		newClusterCommand(a),
		newBenchCommand(a),
		newVersionCommand(a),
	}
}

func (a *app) checkGlobal() error {
	if a.output != "text" && a.output != "json" {
		return errors.New(`--output is "text" or "json"`)
	}
	if a.timeout <= 0 || a.timeout > command.MaxDeadline {
		return fmt.Errorf("--timeout must be more than 0 and at most %v, for example 5s", command.MaxDeadline)
	}
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	a.log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	// Libraries that log by themselves write here.
	slog.SetDefault(a.log)
	return nil
}

func (a *app) json() bool { return a.output == "json" }

// logger is the log, once the command line has been read.
func (a *app) logger() *slog.Logger { return a.log }
