package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/command"
)

// usageError is a command line that was not understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// noArgs refuses arguments, with what was meant perhaps.
func noArgs(hint string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return nil
		case hint == "":
			return fmt.Errorf("unexpected argument %q", args[0])
		}
		return fmt.Errorf("unexpected argument %q; %s", args[0], hint)
	}
}

func atMostOne(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("%d devices: say one, or none to list all of them", len(args))
	}
	return nil
}

func deviceAndLabels(_ *cobra.Command, args []string) error {
	if len(args) < 2 {
		return errors.New("say a DEVICE and at least one label, k=v or k-")
	}
	return nil
}

// exitError ends a command whose results are already on stdout or stderr with
// a code, and with one more line if there is something to sum up.
type exitError struct {
	code    int
	summary string
}

func (e exitError) Error() string { return e.summary }

// rejected is an error of what was asked for, such as a bad device id.
func rejected(format string, args ...any) error {
	return &command.Error{Outcome: command.OutcomeRejected, Message: fmt.Sprintf(format, args...)}
}

// exitCode is the code of the outcome table.
func exitCode(err error) int {
	var exit exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return outcomeOf(err).ExitCode()
}

// outcomeOf gives every error an outcome.
func outcomeOf(err error) command.Outcome {
	var usage usageError
	var cmdErr *command.Error
	switch {
	case err == nil:
		return command.OutcomeOK
	case errors.As(err, &usage):
		return command.OutcomeRejected
	case errors.As(err, &cmdErr):
		return cmdErr.Outcome
	case errors.Is(err, context.DeadlineExceeded):
		return command.OutcomeTimeout
	}
	return command.OutcomeFailed
}

// messageOf is what an error says beside its outcome and the command that it is
// of.
func messageOf(err error) string {
	var cmdErr *command.Error
	switch {
	case !errors.As(err, &cmdErr):
		return oneLine(err.Error())
	case cmdErr.Err == nil || errors.Is(cmdErr.Err, context.DeadlineExceeded):
		return oneLine(cmdErr.Message)
	case cmdErr.Message == "":
		return oneLine(cmdErr.Err.Error())
	}
	return oneLine(cmdErr.Message + ": " + cmdErr.Err.Error())
}

// report writes the one line of an error to stderr, and with -o json an object
// of the same on stdout.
func (a *app) report(err error) {
	var exit exitError
	if errors.As(err, &exit) {
		if exit.summary != "" {
			a.say(exit.summary)
		}
		return
	}
	var usage usageError
	if errors.As(err, &usage) {
		a.say(oneLine(err.Error()) + "; see " + cmp.Or(a.command, "fleet") + " --help")
	} else {
		a.say(oneLine(err.Error()))
	}
	if a.json() {
		_ = a.writeJSON(result{Outcome: outcomeOf(err), Message: messageOf(err)})
	}
}

// say writes one line to stderr.
func (a *app) say(line string) { fmt.Fprintln(a.stderr, "fleet: "+line) }
