package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

// fanOutFlags say how a command goes to many devices.
type fanOutFlags struct {
	concurrency int
	rate        float64
	abortAfter  string
	abortMin    int
}

func (f *fanOutFlags) register(cmd *cobra.Command, concurrency int) {
	flags := cmd.Flags()
	flags.IntVar(&f.concurrency, "concurrency", concurrency, "how many `devices` are asked at a time")
	flags.Float64Var(&f.rate, "rate", 0, "how many `devices` are asked in a second, at most (default: no limit)")
	flags.StringVar(&f.abortAfter, "abort-after", "", "ask no further device when more than this `share`, as 10%, did not end well")
	flags.IntVar(&f.abortMin, "abort-min", 10, "how many `devices` must have ended before --abort-after applies")
}

// set names the flags of the command line that only several devices have a use
// for.
func (f *fanOutFlags) set(cmd *cobra.Command) (names []string) {
	for _, name := range []string{"concurrency", "rate", "abort-after", "abort-min"} {
		if cmd.Flags().Changed(name) {
			names = append(names, "--"+name)
		}
	}
	return names
}

func (f *fanOutFlags) settings(timeout time.Duration) (client.FanOut, error) {
	o := client.FanOut{Window: f.concurrency, Rate: f.rate, Timeout: timeout}
	switch {
	case f.concurrency < 1 || f.concurrency > client.MaxWindow:
		return o, usageError{fmt.Errorf("--concurrency is %d; say 1 to %d", f.concurrency, client.MaxWindow)}
	case !(f.rate >= 0) || f.rate > client.MaxRate:
		return o, usageError{fmt.Errorf("--rate is %v; say how many devices a second, at most %d", f.rate, client.MaxRate)}
	case f.abortMin < 0:
		return o, usageError{errors.New("--abort-min is negative")}
	case f.abortAfter == "":
		return o, nil
	}
	share, err := parseShare(f.abortAfter)
	if err != nil {
		return o, usageError{fmt.Errorf("--abort-after %q: %w", f.abortAfter, err)}
	}
	o.Abort = &client.Abort{Share: share, Min: f.abortMin}
	return o, nil
}

// parseShare reads a percentage.
func parseShare(s string) (float64, error) {
	number, ok := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(v >= 0 && v <= 100) {
		return 0, errors.New("say a percentage from 0% to 100%")
	}
	return v / 100, nil
}

// tally counts how devices ended.
type tally struct {
	total, notStarted int
	outcomes          map[command.Outcome]int // without those of exits and notStarted
	exits             map[int]int             // by exit code other than 0
}

func newTally() *tally { return &tally{outcomes: map[command.Outcome]int{}, exits: map[int]int{}} }

// add counts one device; exitCode is of the program, 0 where there was none.
func (t *tally) add(outcome command.Outcome, exitCode int, notStarted bool) {
	t.total++
	switch {
	case notStarted:
		t.notStarted++
	case outcome == command.OutcomeOK && exitCode != 0:
		t.exits[exitCode]++
	default:
		t.outcomes[outcome]++
	}
}

// code is the exit code of the whole: the largest of the devices', of which one
// whose program did not exit with 0 has failed.
func (t *tally) code() int {
	code := 0
	for outcome := range t.outcomes {
		code = max(code, outcome.ExitCode())
	}
	if len(t.exits) > 0 || t.notStarted > 0 {
		code = max(code, command.OutcomeFailed.ExitCode())
	}
	return code
}

// parts are as in "12 ok", "3 exit 1", "2 offline", "5 not started".
func (t *tally) parts() []string {
	var parts []string
	if n := t.outcomes[command.OutcomeOK]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d ok", n))
	}
	for _, code := range slices.Sorted(maps.Keys(t.exits)) {
		parts = append(parts, fmt.Sprintf("%d exit %d", t.exits[code], code))
	}
	for _, outcome := range slices.Sorted(maps.Keys(t.outcomes)) {
		if outcome != command.OutcomeOK {
			parts = append(parts, fmt.Sprintf("%d %s", t.outcomes[outcome], outcome))
		}
	}
	if t.notStarted > 0 {
		parts = append(parts, fmt.Sprintf("%d not started", t.notStarted))
	}
	return parts
}

// devices is "1 device" or "12 devices".
func (t *tally) devices() string { return countOf(t.total, "device") }

func countOf(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (t *tally) String() string {
	return t.devices() + ": " + strings.Join(t.parts(), ", ")
}
