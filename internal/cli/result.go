package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/command"
)

func newResultCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "result DEVICE REQUEST-ID",
		Short: "Ask how an earlier exec or shell ended",
		Long: `Asks a device how a request of yours ended: one whose connection was lost, and whose
request id fleet then told. The exit code of fleet is 0 where the program ended, whatever its
own exit code, which is printed; 4 while the end is not known (started_no_result); 1 for a
request that the device does not know.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("say a DEVICE and the id of one request, which fleet told when the connection was lost")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.result(cmd.Context(), args[0], args[1]) },
	}
}

func (a *app) result(ctx context.Context, device, requestID string) error {
	if err := command.CheckDeviceID(device); err != nil {
		return err
	}
	if err := command.CheckRequestID(requestID); err != nil {
		return err
	}
	c, _, done, err := a.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	reply, err := c.Result(ctx, device, requestID)
	if err != nil {
		return err
	}
	if a.json() {
		return a.writeJSON(result{DeviceID: device, Outcome: command.OutcomeOK, Reply: reply})
	}
	line := fmt.Sprintf("%s %s: %s", reply.Verb, reply.RequestID, reply.Outcome)
	if reply.ExitCode != nil {
		line += fmt.Sprintf(", exit code %d", *reply.ExitCode)
	}
	if reply.Message != "" {
		line += ": " + reply.Message
	}
	_, err = fmt.Fprintln(a.stdout, command.Printable(line))
	return err
}
