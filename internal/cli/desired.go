package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/directget"
)

type desiredCommand struct {
	app      *app
	file     string
	revision int64 // that is to be replaced; -1: whichever
}

func newDesiredCommand(a *app) *cobra.Command {
	d := &desiredCommand{app: a}
	cmd := &cobra.Command{
		Use:   "desired",
		Short: "Say what a device should run",
		Long: `Reads, writes and deletes the desired state of a device: the document that says which
containers it should run. It signs in to the data account, which needs the role fleet-deployer
or fleet-admin. What became of it: fleet devices DEVICE`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	get := &cobra.Command{
		Use:   "get DEVICE",
		Short: "Print the desired state of a device",
		Long:  `Prints the document as it is stored, and on stderr its revision.`,
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return d.get(cmd.Context(), args[0]) },
	}
	put := &cobra.Command{
		Use:   "put DEVICE -f FILE",
		Short: "Replace the desired state of a device",
		Long: `Checks a document and stores it as what the device should run from now on, and prints its
revision. A device that is offline takes it up when it comes back. docs/agent.md describes the
document.`,
		Example: "  fleet desired put vm-device-00 -f examples/hello.json",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return d.put(cmd.Context(), args[0]) },
	}
	del := &cobra.Command{
		Use:   "delete DEVICE",
		Short: "Delete the desired state of a device: it removes its containers",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return d.delete(cmd.Context(), args[0]) },
	}
	put.Flags().StringVarP(&d.file, "file", "f", "", "`FILE` of the document; - is stdin")
	for _, c := range []*cobra.Command{put, del} {
		c.Flags().Int64Var(&d.revision, "if-revision", -1, "only if the present `revision` is this one; 0: only if there is none")
	}
	cmd.AddCommand(get, put, del)
	return cmd
}

// desiredLine is the result of each sub-command as -o json prints it.
type desiredLine struct {
	DeviceID string          `json:"device_id"`
	Revision uint64          `json:"revision"`
	Stored   *time.Time      `json:"stored,omitempty"` // by the broker
	Deleted  bool            `json:"deleted,omitempty"`
	Document json.RawMessage `json:"document,omitempty"`
}

func (d *desiredCommand) get(ctx context.Context, device string) error {
	if err := command.CheckDeviceID(device); err != nil {
		return err
	}
	var line desiredLine
	var document []byte
	err := d.app.withData(ctx, d.app.timeout, func(ctx context.Context, nc *nats.Conn) (err error) {
		line, document, err = readDesired(ctx, nc, device)
		return err
	})
	if err != nil {
		return desiredFault(device, "read", err)
	}
	if line.Revision == 0 || line.Deleted {
		return &command.Error{Outcome: command.OutcomeFailed, Kind: command.KindNotFound, DeviceID: device,
			Message: "there is no desired state of " + device + "; see fleet desired put --help"}
	}
	if d.app.json() {
		if line.Document = document; !json.Valid(document) {
			return &command.Error{Outcome: command.OutcomeFailed, DeviceID: device, Message: "the stored document is not JSON; see it without -o json"}
		}
		return d.app.writeJSON(line)
	}
	d.app.say(fmt.Sprintf("revision %d, stored %s", line.Revision, line.Stored.Format(time.RFC3339)))
	if len(document) > 0 && document[len(document)-1] != '\n' {
		document = append(document, '\n')
	}
	_, err = d.app.stdout.Write(document)
	return err
}

func readDesired(ctx context.Context, nc *nats.Conn, device string) (desiredLine, []byte, error) {
	line := desiredLine{DeviceID: device}
	m, found, err := directget.Last(ctx, nc, access.KVStream(command.DesiredStateBucket), command.DesiredStateSubject(device))
	if err != nil || !found {
		return line, nil, err
	}
	at := m.At.UTC()
	line.Revision, line.Stored, line.Deleted = m.Seq, &at, m.Deleted
	return line, m.Data, nil
}

func (d *desiredCommand) put(ctx context.Context, device string) error {
	if err := command.CheckDeviceID(device); err != nil {
		return err
	}
	document, err := d.read()
	if err != nil {
		return err
	}
	if _, err := command.ParseDesiredState(document); err != nil {
		var fault *command.Error
		if errors.As(err, &fault) {
			err = rejected("%s: %s", d.file, fault.Message)
		}
		return err
	}
	return d.write(ctx, "write", &nats.Msg{Subject: command.DesiredStateSubject(device), Data: document}, device)
}

// read reads the document, and no more of a file that is larger than any.
func (d *desiredCommand) read() ([]byte, error) {
	if d.file == "" {
		return nil, rejected("say -f FILE, or -f - for stdin")
	}
	var in io.Reader = os.Stdin
	if d.file != "-" {
		f, err := os.Open(d.file)
		if err != nil {
			return nil, rejected("%v", err)
		}
		defer f.Close()
		in = f
	}
	document, err := io.ReadAll(io.LimitReader(in, command.MaxDocument+1))
	if err != nil {
		return nil, rejected("read %s: %v", d.file, err)
	}
	if len(document) > command.MaxDocument {
		return nil, rejected("%s has more than the %d bytes that a desired state may have", d.file, command.MaxDocument)
	}
	return document, nil
}

func (d *desiredCommand) delete(ctx context.Context, device string) error {
	if err := command.CheckDeviceID(device); err != nil {
		return err
	}
	return d.write(ctx, "delete", &nats.Msg{
		Subject: command.DesiredStateSubject(device), Header: nats.Header{"KV-Operation": {"DEL"}},
	}, device)
}

// write publishes to the bucket, whose writers may do no more than that, and
// prints the revision.
func (d *desiredCommand) write(ctx context.Context, verb string, msg *nats.Msg, device string) error {
	var opts []jetstream.PublishOpt
	if d.revision >= 0 {
		opts = append(opts, jetstream.WithExpectLastSequencePerSubject(uint64(d.revision)))
	}
	var ack *jetstream.PubAck
	err := d.app.withData(ctx, d.app.timeout, func(ctx context.Context, nc *nats.Conn) error {
		js, err := jetstream.New(nc)
		if err == nil {
			ack, err = js.PublishMsg(ctx, msg, opts...)
		}
		return err
	})
	if err != nil {
		return desiredFault(device, verb, err)
	}
	deleted := verb == "delete"
	if d.app.json() {
		return d.app.writeJSON(desiredLine{DeviceID: device, Revision: ack.Sequence, Deleted: deleted})
	}
	text := "revision"
	if deleted {
		text = "deleted at revision"
	}
	_, err = fmt.Fprintf(d.app.stdout, "%s  %s %d\n", device, text, ack.Sequence)
	return err
}

func desiredFault(device, verb string, err error) error {
	e := &command.Error{Outcome: outcomeOf(err), DeviceID: device, Message: verb + " the desired state of " + device, Err: err}
	var api *jetstream.APIError
	var done *command.Error
	switch {
	case errors.As(err, &done):
		return err
	case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		e.Outcome, e.Err = command.OutcomeRejected, nil
		e.Message = "somebody changed the desired state of " + device + " meanwhile: its revision is not the one of --if-revision; see fleet desired get " + device
	case errors.Is(err, directget.ErrNoStream) || errors.Is(err, jetstream.ErrNoStreamResponse):
		e.Message, e.Err = "the broker has no bucket for desired state, or JetStream is away; run fleet provision", nil
	}
	return e
}
