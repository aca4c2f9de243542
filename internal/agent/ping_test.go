package agent

import (
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestPingIsAnsweredReportedAndRecorded(t *testing.T) {
	w := newWorld(t)
	a := start(t, w.options("d1"))

	reply := w.ping("d1")
	if reply.DeviceID != "d1" || reply.AgentVersion != "0.0.0-test" || reply.Instance != a.Instance() ||
		reply.Protocol != command.Protocol || reply.Runtime != command.RuntimeDisabled || reply.Time == nil || reply.MemoryRSSBytes == 0 {
		t.Errorf("reply %+v", reply)
	}
	if d := time.Since(*reply.Time).Abs(); d > time.Second {
		t.Errorf("broker time is off by %v", d)
	}

	status := w.awaitStatus("d1", "published", func(command.Status) bool { return true })
	if status.Instance != a.Instance() || status.DeviceID != "d1" || status.AgentVersion != "0.0.0-test" {
		t.Errorf("status %+v", status)
	}
	testwait.For(t, patience, "heartbeat", func() bool {
		return w.last(access.StreamHeartbeat, command.HeartbeatSubject("d1")) != nil
	})
	beat := document[command.Heartbeat](t, w.last(access.StreamHeartbeat, command.HeartbeatSubject("d1")))
	if beat.Instance != a.Instance() || beat.Seq == 0 || beat.SubscribedForMS < 0 || beat.MemoryRSSBytes == 0 {
		t.Errorf("heartbeat %+v", beat)
	}

	records := w.awaitAudit("d1", 1)
	r := records[0]
	if r.Caller.User != broker.UserOps || r.Caller.UID != command.UID(broker.UserOps) || r.Caller.Account != "OPS" ||
		r.Verb != command.VerbPing || r.Outcome != command.OutcomeOK || r.Seq != 1 || r.Prev != "" || r.DeviceID != "d1" ||
		r.subject != "fleet.audit.d1.ping" {
		t.Errorf("audit record %+v", r)
	}
	testwait.For(t, patience, "confirmation", func() bool { return a.audit.spool.Pending() == 0 })
}
