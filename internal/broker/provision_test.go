package broker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func mustProvision(t *testing.T, nc *nats.Conn, o ProvisionOptions) []Change {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	changes, err := Provision(ctx, nc, o)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func actions(changes []Change) map[string]string {
	out := map[string]string{}
	for _, c := range changes {
		out[c.Stream] = c.Action
	}
	return out
}

func provisioned(t *testing.T) (*Server, *nats.Conn, jetstream.JetStream) {
	t.Helper()
	srv := start(t, testConfig(t))
	nc := dial(t, srv.ClientURL(), UserData, passwords.Data)
	for stream, action := range actions(mustProvision(t, nc, ProvisionOptions{})) {
		if action != "created" {
			t.Errorf("%s: %s", stream, action)
		}
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return srv, nc, js
}

func TestProvisionRepairsWhatChangedAndLeavesTheRest(t *testing.T) {
	_, nc, js := provisioned(t)
	ctx := t.Context()
	for stream, action := range actions(mustProvision(t, nc, ProvisionOptions{})) {
		if action != "unchanged" {
			t.Errorf("second run: %s %s", stream, action)
		}
	}
	for _, change := range []func(*jetstream.StreamConfig){
		func(c *jetstream.StreamConfig) { c.AllowRollup = true },
		func(c *jetstream.StreamConfig) { c.MaxMsgSize = 5 },
		func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 2 },
		func(c *jetstream.StreamConfig) { c.NoAck = !c.NoAck },
		func(c *jetstream.StreamConfig) { c.AllowDirect = false },
		func(c *jetstream.StreamConfig) { c.AllowMsgTTL = true }, // cannot be switched off again
	} {
		s, err := js.Stream(ctx, access.KVStream(command.DeviceLabelsBucket))
		if err != nil {
			t.Fatal(err)
		}
		cfg := s.CachedInfo().Config
		change(&cfg)
		if _, err := js.UpdateStream(ctx, cfg); err != nil {
			continue // the server refuses the change itself
		}
		changes, err := Provision(ctx, nc, ProvisionOptions{})
		if cfg.AllowMsgTTL {
			if err == nil || !strings.Contains(err.Error(), "KV_device-labels") {
				t.Errorf("a change that cannot be undone is not told: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for stream, action := range actions(changes) {
			want := "unchanged"
			if stream == access.KVStream(command.DeviceLabelsBucket) {
				want = "updated"
			}
			if action != want {
				t.Errorf("%s: %s, want %s", stream, action, want)
			}
		}
	}
}

func TestProvisionNeedsTheRightAccountAndSaysSo(t *testing.T) {
	srv := start(t, testConfig(t))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := Provision(ctx, dial(t, srv.ClientURL(), UserOps, passwords.Ops, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})), ProvisionOptions{})
	if err == nil || !strings.Contains(err.Error(), "fleet-controller") {
		t.Errorf("got %v", err)
	}
}

func TestStreamsAreSafeByConfiguration(t *testing.T) {
	_, _, js := provisioned(t)
	for _, want := range Streams(ProvisionOptions{}) {
		s, err := js.Stream(t.Context(), want.Name)
		if err != nil {
			t.Fatal(err)
		}
		c := s.CachedInfo().Config
		if !c.DenyDelete || !c.DenyPurge || c.AllowRollup || !c.AllowDirect {
			t.Errorf("%s: deny delete %v, deny purge %v, rollup %v, direct %v", c.Name, c.DenyDelete, c.DenyPurge, c.AllowRollup, c.AllowDirect)
		}
		if c.AllowMsgTTL || c.AllowMsgCounter || c.AllowMsgSchedules || c.AllowAtomicPublish || c.AllowBatchPublish {
			t.Errorf("%s: a publisher can steer it by headers: %+v", c.Name, c)
		}
		bucket := strings.HasPrefix(c.Name, "KV_")
		if c.NoAck == bucket {
			t.Errorf("%s: no ack %v", c.Name, c.NoAck)
		}
		if !bucket && c.Duplicates != noDuplicates {
			t.Errorf("%s: duplicates window %v", c.Name, c.Duplicates)
		}
		if c.MaxMsgsPerSubject < 1 || c.MaxMsgSize < 1 {
			t.Errorf("%s: %d messages per subject of %d bytes", c.Name, c.MaxMsgsPerSubject, c.MaxMsgSize)
		}
		for _, subject := range c.Subjects {
			if strings.HasPrefix(subject, "device-commands") {
				t.Errorf("%s: would answer commands", c.Name)
			}
		}
	}
}

func TestLimitsHold(t *testing.T) {
	srv := start(t, testConfig(t))
	nc := dial(t, srv.ClientURL(), UserData, passwords.Data)
	mustProvision(t, nc, ProvisionOptions{AuditPerSubject: 3, AuditMaxAge: time.Hour})
	device := dial(t, srv.ClientURL(), UserDevice, passwords.Device)
	publish := func(subject string, size int) {
		t.Helper()
		if err := device.Publish(subject, []byte(strings.Repeat("x", size))); err != nil {
			t.Fatal(err)
		}
	}
	publish(command.AuditSubject("d1", command.VerbExec), 1)
	for range 10 {
		publish(command.AuditSubject("d1", command.VerbPing), 1)
	}
	publish(command.AuditSubject("d1", command.VerbPing), maxAuditRecord+1)
	publish(command.StatusSubject("d1"), command.MaxDocument+maxStreamOverhead+1)
	publish(command.StatusSubject("d1"), command.MaxDocument)
	publish(command.HeartbeatSubject("d1"), 1)
	publish(command.HeartbeatSubject("d1"), maxHeartbeat+1)
	publish("fleet.audit.d1.reboot", 1)
	publish(command.AuditSubject("d1", "reboot"), 1) // as other
	if err := device.Flush(); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	counts := func(stream string) map[string]uint64 {
		s, err := js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(">"))
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Subjects
	}
	testwait.For(t, 10*time.Second, "the last record", func() bool { return counts("AUDIT")["fleet.audit.d1.other"] == 1 })
	if got := counts("AUDIT"); got["fleet.audit.d1.ping"] != 3 || got["fleet.audit.d1.exec"] != 1 || len(got) != 3 {
		t.Errorf("audit %v", got)
	}
	for stream, want := range map[string]int{"STATUS": command.MaxDocument, "HEARTBEAT": 1} {
		s, err := js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.GetLastMsgForSubject(t.Context(), map[string]string{"STATUS": command.StatusSubject("d1"), "HEARTBEAT": command.HeartbeatSubject("d1")}[stream])
		if err != nil || len(m.Data) != want {
			t.Errorf("%s: %v", stream, err)
		}
	}
	if again := actions(mustProvision(t, nc, ProvisionOptions{AuditPerSubject: 2, AuditMaxAge: time.Hour})); again["AUDIT"] != "updated" {
		t.Errorf("%v", again)
	}
	if got := counts("AUDIT")["fleet.audit.d1.ping"]; got != 2 {
		t.Errorf("%d pings after the limit was lowered", got)
	}
}

func TestBucketsServeKeyValueClients(t *testing.T) {
	srv, _, js := provisioned(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	device := dial(t, srv.ClientURL(), UserDevice, passwords.Device)
	hints, err := device.SubscribeSync(command.DesiredStateSubject("d1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := device.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, bucket := range []string{command.DesiredStateBucket, command.DeviceLabelsBucket} {
		kv, err := js.KeyValue(ctx, bucket)
		if err != nil {
			t.Fatal(err)
		}
		first, err := kv.Put(ctx, "d1", []byte("one"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Update(ctx, "d1", []byte("two"), first); err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Update(ctx, "d1", []byte("lost"), first); err == nil {
			t.Error("an update of an old revision is taken")
		}
		e, err := kv.Get(ctx, "d1")
		if err != nil || string(e.Value()) != "two" || e.Revision() != first+1 {
			t.Errorf("%v, %v", e, err)
		}
		if err := kv.Purge(ctx, "d1"); err == nil {
			t.Errorf("%s: purge is taken", bucket)
		}
		if err := kv.Delete(ctx, "d1"); err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Get(ctx, "d1"); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Errorf("after delete: %v", err)
		}
		keys, err := kv.Keys(ctx)
		if !errors.Is(err, jetstream.ErrNoKeysFound) {
			t.Errorf("keys %v, %v", keys, err)
		}
	}
	// The device saw what was put in the first bucket, and its end, with the
	// revision, and without a subject to answer to.
	for i, want := range []string{"one", "two", ""} {
		m, err := hints.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Data) != want || m.Reply != "" || m.Header.Get("Nats-Sequence") == "" || m.Header.Get("Nats-Subject") != command.DesiredStateSubject("d1") {
			t.Errorf("hint %d: %q, reply %q, %v", i, m.Data, m.Reply, m.Header)
		}
	}
	m, err := device.Request("$JS.API.DIRECT.GET.KV_desired-state.$KV.desired-state.d1", nil, 5*time.Second)
	if err != nil || m.Header.Get("KV-Operation") != "DEL" {
		t.Errorf("delete marker: %v, %v", m, err)
	}
	m, err = device.Request("$JS.API.DIRECT.GET.KV_desired-state.$KV.desired-state.absent", nil, 5*time.Second)
	if err != nil || m.Header.Get("Status") != "404" {
		t.Errorf("absent: %v, %v", m, err)
	}
}

func TestADeviceSeesItsHeartbeatsAsStored(t *testing.T) {
	srv, _, _ := provisioned(t)
	device := dial(t, srv.ClientURL(), UserDevice, passwords.Device, nats.NoEcho())
	seen, err := device.SubscribeSync(command.SeenSubject("d1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := device.PublishRequest(command.HeartbeatSubject("d1"), "fleet.status.d2", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	m, err := seen.NextMsg(5 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if m.Reply != "" || m.Header.Get("Nats-Stream") != "HEARTBEAT" || m.Header.Get("Nats-Subject") != command.HeartbeatSubject("d1") {
		t.Errorf("reply %q, %v", m.Reply, m.Header)
	}
}

func TestPeopleReadTheStreamsInBatches(t *testing.T) {
	srv, nc, _ := provisioned(t)
	device := dial(t, srv.ClientURL(), UserDevice, passwords.Device)
	for _, id := range []string{"d1", "d2", "d3"} {
		if err := device.Publish(command.StatusSubject(id), []byte(id)); err != nil {
			t.Fatal(err)
		}
	}
	testwait.For(t, 10*time.Second, "three statuses", func() bool {
		m, err := nc.Request("$JS.API.DIRECT.GET.STATUS", []byte(`{"last_by_subj":"fleet.status.d3"}`), 5*time.Second)
		return err == nil && string(m.Data) == "d3"
	})
	ops := dial(t, srv.ClientURL(), UserOps, passwords.Ops)
	inbox := ops.NewRespInbox()
	sub, err := ops.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := ops.PublishRequest("$JS.API.DIRECT.GET.STATUS", inbox, []byte(`{"seq":1,"batch":10,"next_by_subj":"fleet.status.>"}`)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"d1", "d2", "d3", ""} {
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil || string(m.Data) != want {
			t.Fatalf("want %q: %v, %v", want, m, err)
		}
	}
}

func TestReportsReachLiveReadersAndTheStreams(t *testing.T) {
	srv, data, _ := provisioned(t)
	device := dial(t, srv.ClientURL(), UserDevice, passwords.Device)
	ops := dial(t, srv.ClientURL(), UserOps, passwords.Ops)
	reports := map[string]string{
		command.StatusSubject("d1"): "fleet.status.*", command.HeartbeatSubject("d1"): "fleet.heartbeat.*", command.AuditSubject("d1", command.VerbExec): "fleet.audit.>",
		command.SessionSubject("d1", command.UID(UserOps), "s"): "fleet.session.*." + command.UID(UserOps) + ".>",
	}
	for subject, pattern := range reports {
		for _, nc := range []*nats.Conn{ops, data} {
			if nc == data && strings.HasPrefix(subject, "fleet.session.") {
				continue
			}
			sub, err := nc.SubscribeSync(pattern)
			if err != nil {
				t.Fatal(err)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := device.Publish(subject, []byte(pattern)); err != nil {
				t.Fatal(err)
			}
			m, err := sub.NextMsg(5 * time.Second)
			if err != nil || m.Subject != subject || string(m.Data) != pattern {
				t.Errorf("%s by %s: %v, %v", subject, pattern, m, err)
			}
		}
	}
}
