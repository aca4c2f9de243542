package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
)

// Faults of a write, to match with errors.Is.
var (
	// ErrConflict: somebody wrote meanwhile; read the device again.
	ErrConflict = errors.New("it was changed meanwhile")
	// ErrTooLarge: a device would refuse the document. Nothing was written.
	ErrTooLarge = errors.New("the document is too large")
)

// writeTimeout bounds a write whose context has no earlier deadline.
const writeTimeout = 10 * time.Second

// maxHeader is what the owners may take beside a document of the largest size: the
// bucket leaves 4 KiB for all headers.
const maxHeader = 3 << 10

// Put writes the desired state of a device in place of the revision expected, 0
// where there is none, and returns the new one. The mirror has it at once. An error
// wraps [ErrConflict], [ErrTooLarge] or what the broker said; where the broker did
// not answer, it may have been written.
func (m *Mirror) Put(ctx context.Context, id string, expected uint64, state command.DesiredState, owners map[string]string) (revision uint64, err error) {
	state.Schema = command.Schema
	if state.Deployments == nil {
		state.Deployments = map[string]command.Score{}
	}
	data, err := json.Marshal(state)
	if err != nil {
		return 0, fmt.Errorf("desired state of %s: %w", id, err)
	}
	msg := &nats.Msg{Subject: command.DesiredStateSubject(id), Data: data}
	header := ""
	if len(owners) > 0 {
		header = command.EncodeOwners(owners)
		msg.Header = nats.Header{command.HeaderOwners: {header}}
	}
	if len(data) > command.MaxDocument || len(data)+len(header) > command.MaxDocument+maxHeader {
		return 0, fmt.Errorf("desired state of %s: %w: %d bytes, and %d of owners; %d are allowed", id, ErrTooLarge, len(data), len(header), command.MaxDocument)
	}
	revision, err = m.write(ctx, id, "desired state", msg, expected)
	if err != nil {
		return 0, err
	}
	m.written.Add(1)
	doc := Document{Revision: revision, Stored: m.now(), State: state, Owners: maps.Clone(owners)}
	doc.State.Deployments = maps.Clone(state.Deployments)
	m.update(id, func(e *entry, d *Device) bool { return e.takeDocument(d, doc) })
	return revision, nil
}

// PutLabels writes the labels of a device in place of the revision expected, 0 where
// there is none. All else is as with [Mirror.Put].
func (m *Mirror) PutLabels(ctx context.Context, id string, expected uint64, labels map[string]string) (revision uint64, err error) {
	if labels == nil {
		labels = map[string]string{}
	}
	data, err := json.Marshal(command.DeviceLabels{Schema: command.Schema, Labels: labels})
	if err != nil {
		return 0, fmt.Errorf("labels of %s: %w", id, err)
	}
	revision, err = m.write(ctx, id, "labels", &nats.Msg{Subject: command.DeviceLabelsSubject(id), Data: data}, expected)
	if err != nil {
		return 0, err
	}
	m.update(id, func(e *entry, d *Device) bool { return e.takeLabels(d, revision, maps.Clone(labels), "") })
	return revision, nil
}

func (m *Mirror) write(ctx context.Context, id, what string, msg *nats.Msg, expected uint64) (uint64, error) {
	if err := command.CheckDeviceID(id); err != nil {
		return 0, err
	}
	if !m.nc.IsConnected() {
		// The library would keep it and write it when the broker is back.
		return 0, fmt.Errorf("write the %s of %s: %w", what, id, errNotConnected)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	js, err := jetstream.New(m.nc)
	if err != nil {
		return 0, fmt.Errorf("write the %s of %s: %w", what, id, err)
	}
	ack, err := js.PublishMsg(ctx, msg, jetstream.WithExpectLastSequencePerSubject(expected))
	var api *jetstream.APIError
	switch {
	case err == nil:
		return ack.Sequence, nil
	case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		m.conflicts.Add(1)
		return 0, fmt.Errorf("write the %s of %s over revision %d: %w", what, id, expected, ErrConflict)
	}
	return 0, fmt.Errorf("write the %s of %s: %w", what, id, err)
}
