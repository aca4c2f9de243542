package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// chain makes n records of one device that follow from each other.
func chain(t *testing.T, device string, n int) []client.AuditEntry {
	t.Helper()
	var entries []client.AuditEntry
	prev := ""
	for i := range n {
		r := command.AuditRecord{
			Schema: command.Schema, DeviceID: device, Instance: "i", Seq: uint64(i + 1), Prev: prev,
			Verb: command.VerbPing, Event: command.AuditCommand, Outcome: command.OutcomeOK,
		}
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		prev = command.AuditHash(raw)
		entries = append(entries, client.AuditEntry{Record: r, Raw: raw})
	}
	return entries
}

// restarted is the chain of a device whose agent was restarted after n records.
func restarted(t *testing.T, n, more int) []client.AuditEntry {
	t.Helper()
	entries := chain(t, "d1", n)
	for i := range more {
		r := entries[len(entries)-1].Record
		r.Instance, r.Seq, r.Prev = "j", uint64(i+1), command.AuditHash(entries[len(entries)-1].Raw)
		entries = append(entries, entryOf(t, r))
	}
	return entries
}

// unlike is a first record of another chain of the same device.
func unlike(t *testing.T, device string) client.AuditEntry {
	t.Helper()
	r := chain(t, device, 1)[0].Record
	r.Instance = "k"
	return entryOf(t, r)
}

func lossy(t *testing.T) []client.AuditEntry {
	t.Helper()
	entries := chain(t, "d1", 2)
	r := entries[1].Record
	r.Lost = 5
	return []client.AuditEntry{entries[0], entryOf(t, r)}
}

func entryOf(t *testing.T, r command.AuditRecord) client.AuditEntry {
	t.Helper()
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return client.AuditEntry{Record: r, Raw: raw}
}

func TestCheckChainFindsWhatIsMissingOrChanged(t *testing.T) {
	changed := func(entries []client.AuditEntry) []client.AuditEntry {
		e := entries[2]
		e.Record.Outcome = command.OutcomeDenied
		e.Raw, _ = json.Marshal(e.Record)
		return append(append(append([]client.AuditEntry{}, entries[:2]...), e), entries[3:]...)
	}
	for name, tc := range map[string]struct {
		entries []client.AuditEntry
		gaps    int
	}{
		"none":                               {nil, 0},
		"whole":                              {chain(t, "d1", 5), 0},
		"two devices":                        {append(chain(t, "d1", 3), chain(t, "d2", 3)...), 0},
		"older ones gone":                    {chain(t, "d1", 5)[3:], 0},
		"stored twice":                       {append(chain(t, "d1", 3), chain(t, "d1", 3)[1]), 0},
		"one missing":                        {append(chain(t, "d1", 2), chain(t, "d1", 5)[3:]...), 1},
		"one changed":                        {changed(chain(t, "d1", 5)), 1},
		"two with a number":                  {append(chain(t, "d1", 3), changed(chain(t, "d1", 3))[2]), 1},
		"a new instance":                     {restarted(t, 3, 3), 0},
		"end of the instance before missing": {append(restarted(t, 3, 3)[:2:2], restarted(t, 3, 3)[3:]...), 1},
		"start of the instance missing":      {append(restarted(t, 3, 3)[:3:3], restarted(t, 3, 3)[4:]...), 1},
		"a chain that begins again":          {append(chain(t, "d1", 2), unlike(t, "d1")), 1},
		"the device says that it lost some":  {lossy(t), 1},
	} {
		t.Run(name, func(t *testing.T) {
			if gaps := client.CheckChain(tc.entries); len(gaps) != tc.gaps {
				t.Errorf("gaps = %v, want %d", gaps, tc.gaps)
			}
		})
	}
}

func TestAuditIsReadAndFollowed(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	c := f.client(f.ops(), client.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	followed := make(chan client.AuditEntry, 100)
	go func() {
		defer close(followed)
		for e, err := range c.FollowAudit(ctx, client.AuditFilter{Device: "d1"}) {
			if err == nil {
				followed <- e
			}
		}
	}()
	records := chain(t, "d1", 3)
	publish := func(device string, raw []byte) {
		if err := dev.Publish(command.AuditSubject(device, command.VerbPing), raw); err != nil {
			t.Fatal(err)
		}
		f.flush(dev)
	}
	testwait.For(t, 5*time.Second, "the tail to be subscribed", func() bool {
		publish("d1", records[0].Raw)
		return len(followed) > 0
	})
	publish("d2", chain(t, "d2", 1)[0].Raw)
	publish("d1", []byte(`{"schema":99}`))
	count := func(filter client.AuditFilter) (good, bad int) {
		for e, err := range c.Audit(ctx, filter) {
			switch {
			case err != nil:
				bad++
			case e.Seq == 0 || e.StoredAt.IsZero():
				t.Errorf("entry without its place: %+v", e)
			default:
				good++
			}
		}
		return good, bad
	}
	testwait.For(t, 5*time.Second, "the records to be stored", func() bool {
		good, bad := count(client.AuditFilter{})
		return good >= 2 && bad == 1
	})
	if good, bad := count(client.AuditFilter{Device: "d2", Verb: command.VerbPing}); good != 1 || bad != 0 {
		t.Errorf("d2 has %d records and %d bad ones", good, bad)
	}
	if good, _ := count(client.AuditFilter{Verb: command.VerbExec}); good != 0 {
		t.Errorf("%d exec records", good)
	}
	if first := <-followed; first.Record.DeviceID != "d1" {
		t.Errorf("followed %+v", first.Record)
	}
	cancel()
	for range followed { // until the reader has ended
	}
}

func TestAuditWithoutTheRoleIsDenied(t *testing.T) {
	f := newFleet(t)
	c := f.client(f.conn("device", "v", command.DeviceInboxPrefix("d")), client.Options{})
	for _, err := range c.Audit(t.Context(), client.AuditFilter{}) {
		if !errors.Is(err, client.ErrDenied) {
			t.Errorf("read: %v", err)
		}
	}
	for _, err := range c.FollowAudit(t.Context(), client.AuditFilter{}) {
		if !errors.Is(err, client.ErrDenied) {
			t.Errorf("follow: %v", err)
		}
	}
	for _, err := range c.Audit(t.Context(), client.AuditFilter{Device: "d.>"}) {
		if !errors.Is(err, client.ErrRejected) {
			t.Errorf("bad id: %v", err)
		}
	}
}

func TestFollowMissesNothingOverAReconnect(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	nc := f.ops()
	c := f.client(nc, client.Options{Timeout: time.Second})
	records := chain(t, "d1", 6)
	publish := func(some []client.AuditEntry) {
		for _, r := range some {
			if err := dev.Publish(command.AuditSubject("d1", command.VerbPing), r.Raw); err != nil {
				t.Fatal(err)
			}
		}
		f.flush(dev)
	}
	publish(records[:2])
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	followed := make(chan client.AuditEntry, 100)
	done := make(chan error, 1)
	go func() {
		for e, err := range c.FollowAudit(ctx, client.AuditFilter{From: 1}) {
			if err != nil {
				done <- err
				return
			}
			followed <- e
		}
		done <- nil
	}()
	for i, want := range records {
		switch i {
		case 2:
			if err := nc.ForceReconnect(); err != nil {
				t.Fatal(err)
			}
			publish(records[2:4])
		case 4:
			publish(records[4:])
		}
		select {
		case got := <-followed:
			if string(got.Raw) != string(want.Raw) || got.Seq != uint64(i+1) || got.StoredAt.IsZero() {
				t.Fatalf("record %d is %+v", i, got)
			}
		case err := <-done:
			t.Fatalf("ended before record %d: %v", i, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("err = %v", err)
	}
	if len(followed) > 0 {
		t.Error("a record came twice")
	}
}
