package client

import (
	"context"
	"slices"
	"strings"
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
// sorted by id. It needs a role that may list devices.
func (c *Client) Devices(ctx context.Context, selector Selector) ([]Device, error) {
	ctx, cancel := context.WithTimeout(ctx, listBudget)
	defer cancel()
	c.deadline(ctx, 0) // asks the broker for its time where that is not known
	devices := map[string]*Device{}
	read := func(stream, prefix string, take func(*Device, stored), create bool) error {
		return c.scan(ctx, stream, prefix+"*", 1, func(m stored) bool {
			id := strings.TrimPrefix(m.Subject, prefix)
			d := devices[id]
			if d == nil {
				if !create || command.CheckDeviceID(id) != nil {
					return true
				}
				d = &Device{ID: id, LastSeen: -1}
				devices[id] = d
			}
			take(d, m)
			return true
		})
	}
	if err := read(access.StreamStatus, command.StatusSubject(""), (*Device).takeStatus, true); err != nil {
		return nil, listFailed(err)
	}
	if err := read(access.StreamHeartbeat, command.HeartbeatSubject(""), c.takeHeartbeat, true); err != nil {
		return nil, listFailed(err)
	}
	if err := read(access.KVStream(command.DeviceLabelsBucket), command.DeviceLabelsSubject(""), (*Device).takeLabels, false); err != nil {
		return nil, listFailed(err)
	}
	list := make([]Device, 0, len(devices))
	for _, d := range devices {
		if selector.Matches(d.Labels) {
			list = append(list, *d)
		}
	}
	slices.SortFunc(list, func(a, b Device) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// listBudget bounds a list of devices.
const listBudget = 30 * time.Second

// Device reads what the broker keeps of one device. A device that never reported
// is [ErrUnknownDevice].
func (c *Client) Device(ctx context.Context, id string) (Device, error) {
	if err := command.CheckDeviceID(id); err != nil {
		return Device{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	c.deadline(ctx, 0)
	d := Device{ID: id, LastSeen: -1}
	for _, source := range []struct {
		stream, subject string
		take            func(*Device, stored)
	}{
		{access.StreamStatus, command.StatusSubject(id), (*Device).takeStatus},
		{access.StreamHeartbeat, command.HeartbeatSubject(id), c.takeHeartbeat},
		{access.KVStream(command.DeviceLabelsBucket), command.DeviceLabelsSubject(id), (*Device).takeLabels},
	} {
		found, err := c.lastOf(ctx, source.stream, []string{source.subject})
		if err != nil {
			return Device{}, listFailed(err)
		}
		if m, ok := found[source.subject]; ok {
			source.take(&d, m)
		}
	}
	if d.StatusAt.IsZero() && d.HeartbeatAt.IsZero() {
		return Device{}, &command.Error{Outcome: command.OutcomeUnknownDevice, DeviceID: id, Message: "device " + id + " never reported; check the spelling"}
	}
	return d, nil
}

func listFailed(err error) error {
	e := about(err, "", "", "")
	if e.Message == "" {
		e.Message = "list devices"
	}
	return e
}

func (d *Device) takeStatus(m stored) {
	d.StatusAt = m.Time
	s, err := command.DecodeDocument[command.Status](m.Data)
	if err != nil {
		d.Fault = "status: " + err.Error()
		return
	}
	d.Status = &s
}

func (c *Client) takeHeartbeat(d *Device, m stored) {
	d.HeartbeatAt = m.Time
	h, err := command.DecodeDocument[command.Heartbeat](m.Data)
	if err != nil {
		d.Fault = "heartbeat: " + err.Error()
		return
	}
	d.Heartbeat = &h
	if age, ok := c.age(lastSeen{at: m.Time}); ok {
		d.LastSeen = age
		d.Online = age <= OnlineWithin
	}
}

func (d *Device) takeLabels(m stored) {
	if m.Deleted {
		d.Labels = nil
		return
	}
	l, err := command.DecodeDocument[command.DeviceLabels](m.Data)
	if err != nil {
		d.Fault = "labels: " + err.Error()
		return
	}
	d.Labels = l.Labels
}
