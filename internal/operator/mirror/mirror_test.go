package mirror

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
)

func online(d Device) bool  { return d.Online }
func offline(d Device) bool { return !d.Online }

func score(image string) command.Score {
	return command.Score{Type: command.ScorePodmanV0, Data: []byte(`{"services":[{"name":"web","image":"` + image + `"}]}`)}
}

func TestWhatIsStoredAndWhatComesAfterIsMirrored(t *testing.T) {
	w := newWorld(t)
	w.status("d1", func(s *command.Status) { s.AgentVersion = "old" })
	w.status("d1", nil)
	w.heartbeat("d1")
	owners := map[string]string{"web": "shop/web"}
	state := command.DesiredState{Schema: command.Schema, Deployments: map[string]command.Score{"web": score("a"), "other": score("b")}}
	w.store(command.DesiredStateSubject("d1"), nil, command.DesiredState{Schema: command.Schema})
	revision := w.store(command.DesiredStateSubject("d1"), nats.Header{command.HeaderOwners: {command.EncodeOwners(owners)}}, state)
	labels := w.store(command.DeviceLabelsSubject("d1"), nil, command.DeviceLabels{Schema: command.Schema, Labels: map[string]string{"site": "lab"}})

	m := w.synced(w.mirror(Options{}))
	// Streams take what devices publish a moment later.
	d := w.device(m, "d1", "with its status", func(d Device) bool { return d.Reported() && d.Online })
	if d.Status.AgentVersion != "v1" || d.OnlineReason != v1alpha1.ReasonHeartbeats || d.LastHeartbeat.IsZero() {
		t.Errorf("%+v", d)
	}
	if d.Document.Revision != revision || len(d.Document.State.Deployments) != 2 || !maps.Equal(d.Document.Owners, owners) || d.Document.Stored.IsZero() {
		t.Errorf("document %+v", d.Document)
	}
	if d.LabelsRevision != labels || d.Labels["site"] != "lab" {
		t.Errorf("labels %v at %d", d.Labels, d.LabelsRevision)
	}

	changes := m.Subscribe()
	defer changes.Close()
	if got := changes.Take(); !slices.Equal(got, []string{"d1"}) {
		t.Errorf("a subscription begins with %v", got)
	}
	w.status("d2", nil)
	w.device(m, "d2", "reports", Device.Reported)
	if d, _ := m.Device("d2"); d.Online || d.OnlineReason != v1alpha1.ReasonNeverSeen {
		t.Errorf("without a heartbeat: %+v", d)
	}
	w.store(command.DesiredStateSubject("d1"), nats.Header{"KV-Operation": {"DEL"}}, []byte{})
	w.device(m, "d1", "loses its document", func(d Device) bool { return d.Document.Deleted && len(d.Document.State.Deployments) == 0 })
	select {
	case <-changes.Ready():
	case <-time.After(patience):
		t.Fatal("nothing is told")
	}
	got := changes.Take()
	slices.Sort(got)
	if !slices.Equal(got, []string{"d1", "d2"}) || changes.Take() != nil {
		t.Errorf("told of %v", got)
	}
	if m.Len() != 2 || len(slices.Collect(m.All())) != 2 {
		t.Errorf("%d devices", m.Len())
	}
}

func TestHeartbeatsAndPullProgressAreToldNobody(t *testing.T) {
	w := newWorld(t)
	m := w.synced(w.mirror(Options{}))
	progress := func(text string) {
		w.status("d1", func(s *command.Status) {
			s.Time = time.Now()
			s.Deployments = map[string]command.DeploymentStatus{"web": {Phase: command.PhasePulling, Services: map[string]command.ServiceStatus{"web": {Phase: command.PhasePulling, Progress: text}}}}
		})
	}
	progress("1 of 2 MB")
	w.heartbeat("d1")
	before := w.device(m, "d1", "is online", func(d Device) bool { return d.Online && d.Reported() })
	changes := m.Subscribe()
	defer changes.Close()
	changes.Take()
	w.heartbeat("d1")
	progress("2 of 2 MB")
	w.device(m, "d1", "is heard again", func(d Device) bool {
		return d.LastHeartbeat.After(before.LastHeartbeat) && d.StatusSeq > before.StatusSeq
	})
	if got := changes.Take(); got != nil {
		t.Errorf("told of %v", got)
	}
}

func TestWritesExpectARevision(t *testing.T) {
	w := newWorld(t)
	m := w.synced(w.mirror(Options{}))
	ctx := t.Context()
	state := command.DesiredState{Deployments: map[string]command.Score{"web": score("a")}}
	owners := map[string]string{"web": "shop/web"}
	first, err := m.Put(ctx, "d1", 0, state, owners)
	if err != nil {
		t.Fatal(err)
	}
	if d, _ := m.Device("d1"); d.Document.Revision != first || !maps.Equal(d.Document.Owners, owners) {
		t.Errorf("the mirror has not what it wrote: %+v", d.Document)
	}
	if _, err := m.Put(ctx, "d1", 0, state, owners); !errors.Is(err, ErrConflict) {
		t.Errorf("over another's: %v", err)
	}
	second, err := m.Put(ctx, "d1", first, command.DesiredState{}, nil)
	if err != nil || second <= first {
		t.Errorf("revision %d, %v", second, err)
	}
	// Another mirror reads the same.
	d := w.device(w.synced(w.mirror(Options{})), "d1", "has its document", func(d Device) bool { return d.Document.Revision == second })
	if d.Document.State.Deployments == nil || len(d.Document.State.Deployments) != 0 || d.Document.Owners != nil {
		t.Errorf("%+v", d.Document)
	}
	big := command.DesiredState{Deployments: map[string]command.Score{"web": score(strings.Repeat("a", command.MaxDocument))}}
	if _, err := m.Put(ctx, "d1", second, big, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, err := m.Put(ctx, "d1.d2", 0, state, nil); err == nil {
		t.Error("wrote to a subject of two tokens")
	}
	revision, err := m.PutLabels(ctx, "d1", 0, map[string]string{"site": "lab"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.PutLabels(ctx, "d1", revision+1, nil); !errors.Is(err, ErrConflict) {
		t.Errorf("labels over another's: %v", err)
	}
	if d, _ := m.Device("d1"); d.LabelsRevision != revision || d.Labels["site"] != "lab" {
		t.Errorf("%+v", d)
	}
}

func TestWhatCannotBeReadIsShownAndHarmsNothing(t *testing.T) {
	w := newWorld(t)
	m := w.synced(w.mirror(Options{}))
	w.status("good", nil)
	for device, doc := range map[string]any{
		"nojson": []byte("\xff"), "schema": []byte(`{"schema":7}`), "empty": []byte{},
		"liar": command.Status{Schema: command.Schema, DeviceID: "good"},
	} {
		w.publish(command.StatusSubject(device), doc)
		d := w.device(m, device, "reports", Device.Reported)
		if d.Status != nil || d.StatusFault == "" {
			t.Errorf("%s: %+v", device, d)
		}
	}
	w.store(command.DesiredStateSubject("good"), nil, []byte("["))
	w.device(m, "good", "has a bad document", func(d Device) bool { return d.Document.Fault != "" && d.Document.Revision != 0 })
	w.store(command.DesiredStateSubject("good"), nats.Header{command.HeaderOwners: {`{"a":"b"}`}}, command.DesiredState{Schema: command.Schema})
	w.device(m, "good", "has bad owners", func(d Device) bool { return strings.Contains(d.Document.Fault, command.HeaderOwners) })
	w.store(command.DesiredStateSubject("good"), nil, command.DesiredState{Schema: command.Schema})
	w.device(m, "good", "has a good document", func(d Device) bool { return d.Document.Fault == "" })
	if n := m.unreadable[partStatus].Load(); n != 4 {
		t.Errorf("%d unreadable statuses are counted, not 4", n)
	}
	if n := m.unreadable[partDocument].Load(); n != 2 {
		t.Errorf("%d unreadable documents are counted, not 2", n)
	}
	// The largest that a device can send stays small here.
	w.status("huge", func(s *command.Status) {
		s.Deployments = map[string]command.DeploymentStatus{}
		for i := range 300 {
			s.Deployments[fmt.Sprintf("d%d", i)] = command.DeploymentStatus{Phase: "x", Error: &command.ErrorDetail{Message: strings.Repeat("é", 700)}}
		}
		s.Labels = map[string]string{}
		for i := range 1000 {
			s.Labels[fmt.Sprintf("l%d", i)] = "v"
		}
	})
	d := w.device(m, "huge", "reports", func(d Device) bool { return d.Status != nil })
	if len(d.Status.Deployments) != command.MaxDeployments || len(d.Status.Labels) != maxLabels {
		t.Errorf("%d deployments, %d labels", len(d.Status.Deployments), len(d.Status.Labels))
	}
	for name, s := range d.Status.Deployments {
		if len(s.Error.Message) > maxMessage {
			t.Fatalf("%s has a message of %d bytes", name, len(s.Error.Message))
		}
	}
}

func TestOnlineEndsWithHeartbeats(t *testing.T) {
	w := newWorld(t)
	m := w.synced(w.mirror(Options{HeartbeatTimeout: 400 * time.Millisecond}))
	w.heartbeat("d1")
	w.device(m, "d1", "is online", online)
	d := w.device(m, "d1", "is lost", offline)
	if d.OnlineReason != v1alpha1.ReasonHeartbeatsLost {
		t.Errorf("reason %s", d.OnlineReason)
	}
	w.heartbeat("d1")
	w.device(m, "d1", "is back", online)
	// A mirror that starts later judges by the broker's time and not by its own.
	w.device(m, "d1", "is lost again", offline)
	late := w.synced(w.mirror(Options{HeartbeatTimeout: 400 * time.Millisecond}))
	if d, ok := late.Device("d1"); !ok || d.Online {
		t.Errorf("a heartbeat of long ago counts: %+v", d)
	}
}

func TestADisconnectShortensTheWaitUnlessTheDeviceIsHeard(t *testing.T) {
	w := newWorld(t)
	m := w.synced(w.mirror(Options{HeartbeatTimeout: time.Hour, DisconnectGrace: 400 * time.Millisecond}))
	for _, id := range []string{"gone", "well"} {
		w.heartbeat(id)
		w.device(m, id, "is online", online)
	}
	// An event from before the heartbeat says nothing.
	for _, id := range []string{"gone", "well"} {
		d, _ := m.Device(id)
		m.Disconnected(id, d.LastHeartbeat.Add(-time.Millisecond))
		m.Disconnected(id, m.now())
		m.Disconnected("nobody", m.now())
	}
	d, _ := m.Device("well")
	w.heartbeat("well")
	w.device(m, "well", "is heard", func(now Device) bool { return now.LastHeartbeat.After(d.LastHeartbeat) })
	if d := w.device(m, "gone", "is lost", offline); d.OnlineReason != v1alpha1.ReasonDisconnected {
		t.Errorf("reason %s", d.OnlineReason)
	}
	if d, _ := m.Device("well"); !d.Online {
		t.Error("a device that was heard is lost")
	}
}

// The event comes from the server, not from the test.
func TestTheEndOfADevicesConnectionIsHeard(t *testing.T) {
	w := newWorld(t)
	m := w.synced(w.mirror(Options{HeartbeatTimeout: time.Hour, DisconnectGrace: 100 * time.Millisecond}))
	agent := w.dial(broker.UserDevice, passwords.Device, nats.Name(command.ConnectionName("d1")))
	w.heartbeat("d1")
	w.device(m, "d1", "is online", online)
	agent.Close()
	if d := w.device(m, "d1", "is lost", offline); d.OnlineReason != v1alpha1.ReasonDisconnected {
		t.Errorf("reason %s", d.OnlineReason)
	}
}

func TestTheBrokerGoesAndComesBack(t *testing.T) {
	w := newWorld(t)
	m := w.synced(w.mirror(Options{HeartbeatTimeout: 5 * time.Second, AwayAfter: 200 * time.Millisecond}))
	w.heartbeat("d1")
	w.device(m, "d1", "is online", online)
	changes := m.Subscribe()
	defer changes.Close()
	changes.Take()
	w.srv.Close()
	d := w.device(m, "d1", "shows that", func(d Device) bool { return d.OnlineReason == v1alpha1.ReasonBrokerAway })
	if !d.Online || m.NotCurrent() == nil || !m.Away() {
		t.Errorf("%+v, %v", d, m.NotCurrent())
	}
	if got := changes.Take(); !slices.Equal(got, []string{"d1"}) {
		t.Errorf("told of %v", got)
	}
	if _, err := m.Put(t.Context(), "d1", 0, command.DesiredState{}, nil); err == nil || errors.Is(err, ErrConflict) {
		t.Errorf("write while it is away: %v", err)
	}
	w.start()
	d = w.device(m, "d1", "shows that it is back", func(d Device) bool { return d.OnlineReason == v1alpha1.ReasonHeartbeats })
	if !d.Online {
		t.Errorf("%+v", d)
	}
	w.status("d1", nil)
	w.device(m, "d1", "reports", Device.Reported)
	w.device(m, "d1", "is lost in the end", offline)
}

func TestAStreamThatWasMadeAnewCounts(t *testing.T) {
	w := newWorld(t)
	m := w.synced(w.mirror(Options{}))
	for range 5 {
		w.status("d1", nil)
		w.store(command.DesiredStateSubject("d1"), nil, command.DesiredState{Schema: command.Schema})
	}
	w.status("d2", nil)
	w.device(m, "d2", "reports", Device.Reported)
	w.device(m, "d1", "has a document", func(d Device) bool { return d.Document.Revision == 5 })
	js, err := w.data.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	for _, stream := range []string{access.StreamStatus, access.KVStream(command.DesiredStateBucket)} {
		if err := js.DeleteStream(stream); err != nil {
			t.Fatal(err)
		}
	}
	w.provision()
	w.status("d1", func(s *command.Status) { s.AgentVersion = "anew" })
	w.device(m, "d1", "is as in the new stream", func(d Device) bool {
		return d.Status != nil && d.Status.AgentVersion == "anew" && d.Document.Revision == 0
	})
	w.device(m, "d2", "is forgotten", func(d Device) bool { return !d.Reported() })
	if _, err := m.Put(t.Context(), "d1", 0, command.DesiredState{}, nil); err != nil {
		t.Error(err)
	}
}

func TestStreamsMayComeLate(t *testing.T) {
	w := &world{t: t}
	w.cfg.Port, w.cfg.StoreDir, w.cfg.UserPass = -1, t.TempDir(), &passwords
	w.start()
	t.Cleanup(func() { w.srv.Close() })
	w.data = w.dial("data", passwords.Data)
	m := w.mirror(Options{})
	w.device(m, "any", "waits for a stream", func(Device) bool {
		err := m.NotCurrent()
		return err != nil && strings.Contains(err.Error(), "fleet provision")
	})
	w.provision()
	w.synced(m)
}

func TestMetricsSayWhatIsThere(t *testing.T) {
	w := newWorld(t)
	m := w.synced(w.mirror(Options{}))
	w.status("d1", nil)
	w.heartbeat("d1")
	w.publish(command.StatusSubject("d2"), []byte("["))
	w.device(m, "d1", "is online", online)
	w.device(m, "d1", "reports", Device.Reported)
	w.device(m, "d2", "reports", Device.Reported)
	if err := testutil.CollectAndCompare(m, strings.NewReader(`
# HELP fleet_operator_devices Devices that have reported, by whether they are online and run what they should.
# TYPE fleet_operator_devices gauge
fleet_operator_devices{online="false",ready="false"} 1
fleet_operator_devices{online="false",ready="true"} 0
fleet_operator_devices{online="true",ready="false"} 0
fleet_operator_devices{online="true",ready="true"} 1
# HELP fleet_operator_nats_connected 1 while the operator is connected to the broker.
# TYPE fleet_operator_nats_connected gauge
fleet_operator_nats_connected 1
# HELP fleet_operator_unreadable_messages_total Messages of devices and documents that could not be read, by what they are.
# TYPE fleet_operator_unreadable_messages_total counter
fleet_operator_unreadable_messages_total{kind="desired-state"} 0
fleet_operator_unreadable_messages_total{kind="device-labels"} 0
fleet_operator_unreadable_messages_total{kind="heartbeat"} 0
fleet_operator_unreadable_messages_total{kind="status"} 1
`), "fleet_operator_devices", "fleet_operator_nats_connected", "fleet_operator_unreadable_messages_total"); err != nil {
		t.Error(err)
	}
}
