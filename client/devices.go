package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// OnlineWithin is how old a device's last heartbeat may be for it to count as
// online: three intervals.
const OnlineWithin = 3 * command.HeartbeatInterval

// Device is what the broker keeps of one device.
type Device struct {
	ID string
	// Labels are those that operators gave; what the device reports of itself is
	// Status.Labels.
	Labels    map[string]string
	Status    *command.Status    // nil: none was ever stored, or it cannot be read
	Heartbeat *command.Heartbeat // nil: none was ever stored, or it cannot be read
	// StatusAt and HeartbeatAt are when the broker stored them, by its clock.
	StatusAt, HeartbeatAt time.Time
	// LastSeen is how long ago the last heartbeat was; negative where there is none.
	LastSeen time.Duration
	Online   bool // the last heartbeat is younger than [OnlineWithin]
	// Fault says what could not be read of it, if anything.
	Fault string
}

// Selector selects devices by the labels that operators gave them: every entry
// must match. The zero value selects all.
type Selector map[string]string

// Matches tells whether labels satisfy the selector.
func (s Selector) Matches(labels map[string]string) bool {
	for k, v := range s {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Devices lists the devices that ever reported and that the selector matches,
// sorted by id. It needs a role that may list devices, and broker time. It reads
// the broker's streams in batches and asks no device. The error is a
// [*command.Error].
func (c *Client) Devices(ctx context.Context, selector Selector) ([]Device, error) {
	var (
		states, beats, labels []stored
		errs                  [3]error
		wg                    sync.WaitGroup
	)
	read := func(into *[]stored, err *error, stream, filter string) {
		wg.Go(func() {
			*err = c.scan(ctx, stream, getRequest{NextFor: filter}, func(m stored) bool {
				*into = append(*into, m)
				return true
			})
		})
	}
	read(&states, &errs[0], access.StreamStatus, command.StatusSubject("*"))
	read(&beats, &errs[1], access.StreamHeartbeat, command.HeartbeatSubject("*"))
	read(&labels, &errs[2], access.KVStream(command.DeviceLabelsBucket), command.DeviceLabelsSubject("*"))
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	now, fault := c.mustNow(ctx)
	if fault != nil {
		return nil, fault
	}
	devices := make(map[string]*Device, len(states))
	// A subject that is written while it is read is there twice: the later wins.
	each := func(messages []stored, reported bool, take func(*Device, stored)) {
		for _, m := range messages {
			id := lastToken(m.Subject)
			d := devices[id]
			if d == nil {
				if !reported || command.CheckDeviceID(id) != nil {
					continue
				}
				d = &Device{ID: id, LastSeen: -1}
				devices[id] = d
			}
			take(d, m)
		}
	}
	each(states, true, (*Device).takeStatus)
	each(beats, true, (*Device).takeHeartbeat)
	each(labels, false, (*Device).takeLabels)
	list := make([]Device, 0, len(devices))
	for _, d := range devices {
		if selector.Matches(d.Labels) {
			d.judge(now)
			list = append(list, *d)
		}
	}
	slices.SortFunc(list, func(a, b Device) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// Device reads what the broker keeps of one device. A device that never reported
// is [ErrUnknownDevice]. The error is a [*command.Error].
func (c *Client) Device(ctx context.Context, id string) (Device, error) {
	if err := command.CheckDeviceID(id); err != nil {
		return Device{}, err
	}
	d := Device{ID: id, LastSeen: -1}
	sources := [...]struct {
		stream, subject string
		take            func(*Device, stored)
	}{
		{access.StreamStatus, command.StatusSubject(id), (*Device).takeStatus},
		{access.StreamHeartbeat, command.HeartbeatSubject(id), (*Device).takeHeartbeat},
		{access.KVStream(command.DeviceLabelsBucket), command.DeviceLabelsSubject(id), (*Device).takeLabels},
	}
	var (
		pages [len(sources)]page
		errs  [len(sources)]error
		wg    sync.WaitGroup
	)
	for i, source := range sources {
		wg.Go(func() { pages[i], errs[i] = c.get(ctx, source.stream, getRequest{LastFor: source.subject}) })
	}
	wg.Wait()
	for i, source := range sources {
		if errs[i] != nil {
			return Device{}, errs[i]
		}
		for _, m := range pages[i].messages {
			source.take(&d, m)
		}
	}
	if d.StatusAt.IsZero() && d.HeartbeatAt.IsZero() {
		e := fault(command.OutcomeUnknownDevice, nil, "device %s has never reported; check the id", id)
		e.DeviceID = id
		return Device{}, e
	}
	now, fault := c.mustNow(ctx)
	if fault != nil {
		return Device{}, fault
	}
	d.judge(now)
	return d, nil
}

// mustNow is now for what makes no sense without.
func (c *Client) mustNow(ctx context.Context) (time.Time, *command.Error) {
	if now, ok := c.now(ctx); ok {
		return now, nil
	}
	if ctx.Err() != nil {
		return time.Time{}, contextFault(ctx, true)
	}
	return time.Time{}, natsFault(c.clockError(), "the broker's time is not known, and without it not who is online")
}

// judge tells from the time of the last heartbeat whether the device is online.
func (d *Device) judge(now time.Time) {
	if d.HeartbeatAt.IsZero() {
		return
	}
	d.LastSeen = max(0, now.Sub(d.HeartbeatAt))
	d.Online = d.LastSeen < OnlineWithin
}

// fault notes what could not be read.
func (d *Device) fault(what string, err error) {
	if d.Fault != "" {
		d.Fault += "; "
	}
	d.Fault += what + ": " + err.Error()
}

// wrongDevice is the fault of a document under the subject of another device.
func wrongDevice(id string) error { return fmt.Errorf("it speaks of the device %.80q", id) }

func (d *Device) takeStatus(m stored) {
	d.StatusAt, d.Status = m.At, nil
	s, err := command.DecodeDocument[command.Status](m.Data)
	if err == nil && s.DeviceID != d.ID {
		err = wrongDevice(s.DeviceID)
	}
	if err != nil {
		d.fault("status", err)
		return
	}
	d.Status = &s
}

func (d *Device) takeHeartbeat(m stored) {
	d.HeartbeatAt, d.Heartbeat = m.At, nil
	h, err := command.DecodeDocument[command.Heartbeat](m.Data)
	if err == nil && h.DeviceID != d.ID {
		err = wrongDevice(h.DeviceID)
	}
	if err != nil {
		d.fault("heartbeat", err)
		return
	}
	d.Heartbeat = &h
}

func (d *Device) takeLabels(m stored) {
	d.Labels = nil
	if m.Deleted {
		return
	}
	l, err := command.DecodeDocument[command.DeviceLabels](m.Data)
	if err != nil {
		d.fault("labels", err)
		return
	}
	d.Labels = l.Labels
}
