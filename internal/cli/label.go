package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/directget"
)

type labelCommand struct {
	app *app
}

func newLabelCommand(a *app) *cobra.Command {
	l := &labelCommand{app: a}
	return &cobra.Command{
		Use:   "label DEVICE k=v... k2-",
		Short: "Give labels to a device, or take them away",
		Long: `Sets labels of a device (k=v) or takes them away (k-), and prints what it has then. Labels
select devices: fleet ping -l site=lab. It signs in to the data account, which needs the role
fleet-deployer or fleet-admin.`,
		Example: "  fleet label vm-device-00 site=lab rack=4\n  fleet label vm-device-00 rack-",
		Args:    deviceAndLabels,
		RunE:    func(cmd *cobra.Command, args []string) error { return l.run(cmd.Context(), args[0], args[1:]) },
	}
}

// labelChange is one argument: a value to set, or nil to take the label away.
type labelChange struct {
	name  string
	value *string
}

func parseLabelChanges(args []string) ([]labelChange, error) {
	var changes []labelChange
	seen := map[string]bool{}
	for _, arg := range args {
		var c labelChange
		if name, value, ok := strings.Cut(arg, "="); ok {
			c = labelChange{name, &value}
		} else if name, ok := strings.CutSuffix(arg, "-"); ok {
			c = labelChange{name: name}
		} else {
			return nil, rejected("label %q: say k=v to set it or k- to take it away", arg)
		}
		if err := checkLabel(c.name, c.value); err != nil {
			return nil, err
		}
		if seen[c.name] {
			return nil, rejected("label %q is given twice", c.name)
		}
		seen[c.name] = true
		changes = append(changes, c)
	}
	return changes, nil
}

// Labels are those of Kubernetes, where devices become objects: a name of at
// most 63 characters, with an optional DNS prefix; a value of the same syntax,
// or empty.
var (
	labelName   = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	labelValue  = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
	labelSyntax = "up to 63 of A-Z, a-z, 0-9, '-', '_' and '.', with a letter or digit at both ends"
)

func checkLabel(name string, value *string) error {
	if !labelName.MatchString(name) {
		return rejected("label name %q: a name is %s, and may have a DNS prefix as in example.com/site", name, labelSyntax)
	}
	if value != nil && !labelValue.MatchString(*value) {
		return rejected("label %s: value %q: a value is empty or %s", name, *value, labelSyntax)
	}
	return nil
}

// parseSelector reads "k=v,k2=v2"; several flags add up.
func parseSelector(flags []string) (map[string]string, error) {
	selector := map[string]string{}
	for _, flag := range flags {
		for term := range strings.SplitSeq(flag, ",") {
			name, value, ok := strings.Cut(term, "=")
			if !ok {
				return nil, rejected("selector %q: say k=v, or k=v,k2=v2", flag)
			}
			if err := checkLabel(name, &value); err != nil {
				return nil, err
			}
			if before, ok := selector[name]; ok && before != value {
				return nil, rejected("selector: %s cannot be both %q and %q", name, before, value)
			}
			selector[name] = value
		}
	}
	return selector, nil
}

// labelTries is how often a change is made again because somebody else changed
// the labels of the same device meanwhile.
const labelTries = 10

func (l *labelCommand) run(ctx context.Context, device string, args []string) error {
	if err := command.CheckDeviceID(device); err != nil {
		return err
	}
	changes, err := parseLabelChanges(args)
	if err != nil {
		return err
	}
	var doc command.DeviceLabels
	err = l.app.withData(ctx, l.app.timeout, func(ctx context.Context, nc *nats.Conn) (err error) {
		doc, err = changeLabels(ctx, nc, device, changes)
		return err
	})
	if err != nil {
		return err
	}
	if l.app.json() {
		return l.app.writeJSON(struct {
			DeviceID string            `json:"device_id"`
			Labels   map[string]string `json:"labels"`
		}{device, doc.Labels})
	}
	_, err = fmt.Fprintf(l.app.stdout, "%s  %s\n", device, labelText(doc.Labels))
	return err
}

// changeLabels reads, changes and writes, on the condition that nobody wrote in
// between. It uses no more of JetStream than a deployer may: a direct get and a
// publish.
func changeLabels(ctx context.Context, nc *nats.Conn, device string, changes []labelChange) (command.DeviceLabels, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return command.DeviceLabels{}, labelFault(device, err)
	}
	for range labelTries {
		doc, revision, err := readLabels(ctx, nc, device)
		if err != nil {
			return doc, labelFault(device, err)
		}
		for _, c := range changes {
			if c.value == nil {
				delete(doc.Labels, c.name)
			} else {
				doc.Labels[c.name] = *c.value
			}
		}
		raw, err := json.Marshal(doc)
		if err != nil {
			return doc, labelFault(device, err)
		}
		_, err = js.Publish(ctx, command.DeviceLabelsSubject(device), raw, jetstream.WithExpectLastSequencePerSubject(revision))
		var api *jetstream.APIError
		switch {
		case err == nil:
			return doc, nil
		case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		default:
			return doc, labelFault(device, err)
		}
	}
	return command.DeviceLabels{}, &command.Error{Outcome: command.OutcomeBusy, DeviceID: device,
		Message: "others keep changing the labels of " + device + "; try again"}
}

// readLabels gives the labels of a device and the sequence under which they are
// stored; none and 0 where there are none.
func readLabels(ctx context.Context, nc *nats.Conn, device string) (doc command.DeviceLabels, revision uint64, err error) {
	doc = command.DeviceLabels{Schema: command.Schema, Labels: map[string]string{}}
	m, _, err := directget.Last(ctx, nc, access.KVStream(command.DeviceLabelsBucket), command.DeviceLabelsSubject(device))
	if err != nil || m.Seq == 0 || m.Deleted {
		return doc, m.Seq, err
	}
	old, err := command.DecodeDocument[command.DeviceLabels](m.Data)
	maps.Copy(doc.Labels, old.Labels)
	return doc, m.Seq, err
}

func labelFault(device string, err error) error {
	e := &command.Error{Outcome: outcomeOf(err), DeviceID: device, Message: "change the labels of " + device, Err: err}
	if errors.Is(err, directget.ErrNoStream) || errors.Is(err, jetstream.ErrNoStreamResponse) {
		e.Message, e.Err = "the broker has no bucket for labels, or JetStream is away; run fleet provision", nil
	}
	return e
}

// labelText prints labels in a stable order.
func labelText(labels map[string]string) string {
	terms := make([]string, 0, len(labels))
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		terms = append(terms, name+"="+labels[name])
	}
	if len(terms) == 0 {
		return "-"
	}
	return strings.Join(terms, ",")
}
