package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

type auditCommand struct {
	app    *app
	follow bool
	device string

	chains client.Chains
	faults int // records that could not be read
}

func newAuditCommand(a *app) *cobra.Command {
	c := &auditCommand{app: a}
	cmd := &cobra.Command{
		Use:   "audit [-f] [--device DEVICE]",
		Short: "Show what was asked of devices, by whom, and how it ended",
		Long: `Prints the audit records of all devices, or of one. Records of a device are chained: where
one is missing or was changed, a line says so. It needs the role fleet-auditor or fleet-admin.`,
		Args: noArgs("for one device say --device DEVICE"),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	cmd.Flags().BoolVarP(&c.follow, "follow", "f", false, "go on with new records until Ctrl-C")
	cmd.Flags().StringVar(&c.device, "device", "", "of this `DEVICE` only")
	return cmd
}

func (c *auditCommand) run(ctx context.Context) error {
	if c.device != "" {
		if err := command.CheckDeviceID(c.device); err != nil {
			return err
		}
	}
	cl, _, done, err := c.app.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	records := cl.Audit
	if c.follow {
		records = cl.FollowAudit
	}
	for entry, err := range records(ctx, client.AuditFilter{Device: c.device, From: 1}) {
		switch {
		case ctx.Err() != nil:
			return nil // Ctrl-C is how it ends
		case err != nil && entry.Raw == nil:
			return err
		case err != nil:
			c.faults++
			c.app.say(oneLine(err.Error()))
			continue
		}
		if err := c.print(entry); err != nil {
			return err
		}
	}
	if c.faults > 0 && ctx.Err() == nil {
		return &command.Error{Outcome: command.OutcomeFailed, Message: fmt.Sprintf("%d records could not be read", c.faults)}
	}
	return nil
}

func (c *auditCommand) print(entry client.AuditEntry) error {
	gap, fresh := c.chains.Add(entry)
	if !fresh {
		return nil
	}
	r := entry.Record
	if c.app.json() {
		if gap != nil {
			if err := c.app.writeJSON(struct {
				DeviceID string `json:"device_id"`
				Gap      string `json:"gap"`
			}{r.DeviceID, gap.Reason}); err != nil {
				return err
			}
		}
		return c.app.writeJSON(r)
	}
	if gap != nil {
		if _, err := fmt.Fprintf(c.app.stdout, "-- %s: %s\n", command.Printable(r.DeviceID), gap.Reason); err != nil {
			return err
		}
	}
	outcome := string(r.Outcome)
	if r.Event == command.AuditStart {
		outcome = "started"
	}
	line := fmt.Sprintf("%s  %s  %-6s %-16s %8s  %s  %s", r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), r.DeviceID, r.Verb,
		outcome, rtt(time.Duration(r.DurationUS)*time.Microsecond), r.Caller.User, orDash(r.RequestID))
	if r.Reason != "" {
		line += "  " + r.Reason
	}
	if r.Replayed {
		line += "  (first reply again)"
	}
	_, err := fmt.Fprintln(c.app.stdout, command.Printable(line))
	return err
}
