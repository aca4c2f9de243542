package client_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func (f *fleet) label(device string, labels map[string]string) {
	f.t.Helper()
	js, err := jetstream.New(f.data())
	if err != nil {
		f.t.Fatal(err)
	}
	kv, err := js.KeyValue(f.t.Context(), command.DeviceLabelsBucket)
	if err != nil {
		f.t.Fatal(err)
	}
	data, err := json.Marshal(command.DeviceLabels{Schema: command.Schema, Labels: labels})
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := kv.Put(f.t.Context(), device, data); err != nil {
		f.t.Fatal(err)
	}
}

func TestDevicesAreListedInBatches(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	const n = 1234 // more than two batches
	for i := range n {
		id := fmt.Sprintf("d-%04d", i)
		s := status(id)
		s.Labels = map[string]string{"site": "claimed"}
		f.store(dev, command.StatusSubject(id), s)
		if i%2 == 0 {
			f.store(dev, command.HeartbeatSubject(id), heartbeat(id, time.Hour))
		}
	}
	f.label("d-0001", map[string]string{"site": "lab"})
	f.label("never-reported", map[string]string{"site": "lab"})
	c := f.client(f.ops(), client.Options{})
	var list []client.Device
	testwait.For(t, 10*time.Second, "every report to be stored", func() bool {
		var err error
		list, err = c.Devices(t.Context(), nil)
		return err == nil && len(list) == n && list[n-2].Heartbeat != nil
	})
	for i, d := range list {
		if d.ID != fmt.Sprintf("d-%04d", i) || d.Status == nil || d.Online != (i%2 == 0) || (d.Heartbeat != nil) != (i%2 == 0) || d.Fault != "" {
			t.Fatalf("device %d: %+v", i, d)
		}
	}
	selected, err := c.Devices(t.Context(), client.Selector{"site": "lab"})
	if err != nil || len(selected) != 1 || selected[0].ID != "d-0001" {
		t.Errorf("selected %+v, %v: what a device claims of itself must not select it", selected, err)
	}
	one, err := c.Device(t.Context(), "d-0001")
	if err != nil || one.Labels["site"] != "lab" || one.Online || one.LastSeen >= 0 {
		t.Errorf("device = %+v, %v", one, err)
	}
	if _, err := c.Device(t.Context(), "nobody"); !errors.Is(err, client.ErrUnknownDevice) {
		t.Errorf("err = %v", err)
	}
}

func TestUnreadableReportIsShownNotHidden(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	f.store(dev, command.StatusSubject("d1"), map[string]any{"schema": 99})
	c := f.client(f.ops(), client.Options{})
	testwait.For(t, 5*time.Second, "the report to be stored", func() bool {
		d, err := c.Device(t.Context(), "d1")
		return err == nil && d.Fault != "" && d.Status == nil
	})
}

func TestListingWithoutTheRoleIsDenied(t *testing.T) {
	f := newFleet(t)
	c := f.client(f.conn("device", "v", command.DeviceInboxPrefix("d")), client.Options{})
	if _, err := c.Devices(t.Context(), nil); !errors.Is(err, client.ErrDenied) {
		t.Errorf("err = %v", err)
	}
}

func TestListingBeforeProvisioningSaysWhatToDo(t *testing.T) {
	f := newFleetUnprovisioned(t)
	c := f.client(f.ops(), client.Options{})
	if _, err := c.Devices(t.Context(), nil); !errors.Is(err, client.ErrFailed) {
		t.Errorf("err = %v", err)
	}
}
