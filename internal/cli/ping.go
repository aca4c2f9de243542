package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

type pingCommand struct {
	app       *app
	selection selection
	fanOut    fanOutFlags
}

func newPingCommand(a *app) *cobra.Command {
	p := &pingCommand{app: a}
	cmd := &cobra.Command{
		Use:   "ping DEVICE... | --all | -l k=v",
		Short: "Ask devices whether they are there",
		Long: `Pings devices and prints what became of each as it comes. The exit code is the largest of
theirs: 0 ok, 3 offline, 4 no answer in time, 5 denied (all of them: docs/cli.md).`,
		RunE: func(cmd *cobra.Command, args []string) error { return p.run(cmd.Context(), args) },
	}
	p.selection.register(cmd)
	p.fanOut.register(cmd, client.DefaultWindow)
	return cmd
}

func (p *pingCommand) run(ctx context.Context, devices []string) error {
	selector, err := p.selection.check(devices)
	if err != nil {
		return err
	}
	fanOut, err := p.fanOut.settings(p.app.timeout)
	if err != nil {
		return err
	}
	devices = distinct(devices)
	if len(devices) > 0 && !slices.ContainsFunc(devices, isDeviceID) {
		return p.app.newPingPrinter("").refuse(devices) // a bad id is bad without a broker too
	}
	c, s, done, err := p.app.client(ctx)
	printer := p.app.newPingPrinter(s.server)
	if err != nil {
		return printer.none(devices, err)
	}
	defer done()
	if devices, err = p.selection.devices(ctx, p.app, c, devices, selector); err != nil {
		return err
	}
	return printer.run(ctx, c, devices, fanOut)
}

// pingPrinter prints results as they come and sums them up.
type pingPrinter struct {
	app    *app
	server string
	width  int // of the device column

	tally  *tally
	unseen []commandLogEntry
}

func (a *app) newPingPrinter(server string) *pingPrinter {
	return &pingPrinter{app: a, server: server, tally: newTally()}
}

// run pings devices. Its error has the exit code of the worst outcome.
func (p *pingPrinter) run(ctx context.Context, c *client.Client, devices []string, f client.FanOut) error {
	for _, d := range devices {
		p.width = max(p.width, min(len(d), command.MaxDeviceID))
	}
	defer func() { p.app.logCommands(p.unseen) }()
	for r := range c.PingAll(ctx, devices, f) {
		if err := p.print(r); err != nil {
			return err
		}
	}
	return p.sum()
}

// refuse is the outcome of ids that are none.
func (p *pingPrinter) refuse(ids []string) error {
	for _, id := range ids {
		var e *command.Error
		if err := command.CheckDeviceID(id); errors.As(err, &e) {
			if err := p.print(client.PingResult{Device: id, Err: e}); err != nil {
				return err
			}
		}
	}
	return p.sum()
}

// none stands in for run where there is no connection: every device that was
// named gets that outcome, unless its id is none.
func (p *pingPrinter) none(devices []string, err error) error {
	outcome, message := outcomeOf(err), messageOf(err)
	if outcome == command.OutcomeRejected {
		return err // nothing was tried
	}
	code := outcome.ExitCode()
	var named, bad []string
	for _, d := range devices {
		if !isDeviceID(d) {
			bad = append(bad, d)
			continue
		}
		named = append(named, d)
		p.unseen = append(p.unseen, commandLogEntryOf(p.server, command.VerbPing, &command.Error{Outcome: outcome, DeviceID: d, Message: message}))
	}
	p.app.logCommands(p.unseen)
	if len(bad) > 0 {
		code = max(code, exitCode(p.refuse(bad)))
	}
	if !p.app.json() || len(devices) == 0 {
		p.app.report(err)
		return exitError{code: code}
	}
	for _, d := range named {
		if err := p.app.writeJSON(result{DeviceID: d, Outcome: outcome, Message: message}); err != nil {
			return err
		}
	}
	return exitError{code: code, summary: oneLine(err.Error())}
}

func (p *pingPrinter) print(r client.PingResult) error {
	p.tally.add(r.Outcome(), 0, r.NotStarted())
	if r.Err != nil && !r.NotStarted() && unseen(r.Err) {
		p.unseen = append(p.unseen, commandLogEntryOf(p.server, command.VerbPing, r.Err))
	}
	if p.app.json() {
		line := result{DeviceID: r.Device, Outcome: r.Outcome(), NotStarted: r.NotStarted()}
		if r.Err != nil {
			line.Message = messageOf(r.Err)
		} else {
			us := r.RTT.Microseconds()
			line.RTT, line.Reply = &us, r.Reply
		}
		return p.app.writeJSON(line)
	}
	if r.NotStarted() {
		return nil // the sum says how many
	}
	if r.Err != nil {
		p.app.say(oneLine(r.Err.Error()))
		return nil
	}
	line := fmt.Sprintf("%-*s  ok  %s  agent %s, up %s", p.width, r.Device, rtt(r.RTT), r.Reply.AgentVersion, age(time.Duration(r.Reply.UptimeS)*time.Second))
	if r.Reply.Runtime != "" {
		line += ", runtime " + string(r.Reply.Runtime)
	}
	_, err := fmt.Fprintln(p.app.stdout, command.Printable(line))
	return err
}

// sum is nil where all is ok, and otherwise has the largest exit code; with
// several devices it says how many ended how.
func (p *pingPrinter) sum() error {
	code := p.tally.code()
	if code == 0 {
		return nil
	}
	summary := ""
	if p.tally.total > 1 && !p.app.json() {
		summary = p.tally.String()
	}
	return exitError{code: code, summary: summary}
}
