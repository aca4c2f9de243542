package client_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// A device can lie about itself and no more: what it stores of other callers,
// devices or jobs is not shown.
func TestResultsOfAJobAreTheCallersAndTheDevicesOwn(t *testing.T) {
	f := newFleet(t)
	c := f.client(f.ops(), client.Options{})
	job, err := c.NewJob(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	uid, err := c.UID()
	if err != nil || uid != command.UID(broker.UserOps) {
		t.Fatalf("uid %q, %v", uid, err)
	}
	code := 3
	device := f.device()
	record := func(subjectOf string, change func(*command.JobResult)) {
		r := command.JobResult{
			Schema: command.Schema, Job: job.ID, DeviceID: subjectOf, UID: uid, RequestID: command.JobRequestID(job.ID, subjectOf),
			Time: time.Now(), Verb: command.VerbExec, Outcome: command.OutcomeOK, ExitCode: &code,
		}
		if change != nil {
			change(&r)
		}
		f.store(device, command.JobSubject(subjectOf, command.JobSlot(job.ID)), r)
	}
	record("d1", func(r *command.JobResult) { r.Outcome, r.Kind, r.ExitCode = command.OutcomeBusy, command.KindBusy, nil })
	record("d1", nil)
	record("d1", func(r *command.JobResult) {
		r.Outcome, r.Kind, r.ExitCode = command.OutcomeRejected, command.KindBadRequest, nil
	}) // asked again
	record("d2", func(r *command.JobResult) { r.UID = command.UID("somebody else") })
	record("d3", func(r *command.JobResult) { r.DeviceID = "d1" }) // is read with an error
	record("d4", func(r *command.JobResult) { r.RequestID = "\x1b[2J" })
	record("d5", func(r *command.JobResult) {
		r.Outcome, r.Kind, r.ExitCode = command.OutcomeDenied, command.KindDenied, nil
	})
	record("d6", func(r *command.JobResult) { r.Job = command.NewJobID(time.Now()) }) // of another slot, nearly always
	var got map[string]command.JobResult
	bad := 0
	testwait.For(t, 10*time.Second, "the results", func() bool {
		got, bad = map[string]command.JobResult{}, 0
		for r, err := range c.JobResults(t.Context(), job.ID) {
			var fault *command.Error
			switch {
			case errors.As(err, &fault):
				t.Fatal(err)
			case err != nil:
				bad++
			default:
				got[r.DeviceID] = r
			}
		}
		return bad >= 2 && len(got) >= 2 // d5 is stored after the rest but d6
	})
	if r := got["d1"]; r.ExitCode == nil || *r.ExitCode != 3 {
		t.Errorf("d1: %+v", r)
	}
	if r := got["d5"]; r.Outcome != command.OutcomeDenied || len(got) != 2 {
		t.Errorf("%+v", got)
	}
}

func TestJobsThatCannotBeAskedFor(t *testing.T) {
	f := newFleetUnprovisioned(t)
	c := f.client(f.ops(), client.Options{Timeout: 500 * time.Millisecond})
	for range c.ExecAll(t.Context(), nil, client.ExecOptions{}, client.FanOut{}) {
		t.Error("a result of no device")
	}
	good := client.Job{ID: command.NewJobID(time.Now()), Secret: command.NewSessionID()}
	for name, tt := range map[string]struct {
		o    client.ExecOptions
		f    client.FanOut
		want command.Outcome
	}{
		"no job id":     {client.ExecOptions{Job: client.Job{ID: "x", Secret: good.Secret}}, client.FanOut{}, command.OutcomeRejected},
		"no secret":     {client.ExecOptions{Job: client.Job{ID: good.ID}}, client.FanOut{}, command.OutcomeRejected},
		"a terminal":    {client.ExecOptions{TTY: &command.Resize{}}, client.FanOut{}, command.OutcomeRejected},
		"a bad fan-out": {client.ExecOptions{}, client.FanOut{Rate: -1}, command.OutcomeRejected},
		"no streams":    {client.ExecOptions{Job: good}, client.FanOut{}, command.OutcomeFailed},
	} {
		n := 0
		for r := range c.ExecAll(t.Context(), []string{"d1", "d2"}, tt.o, tt.f) {
			if n++; r.Err == nil || r.Outcome() != tt.want || r.RequestID != "" {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if n != 2 {
			t.Errorf("%s: %d results", name, n)
		}
	}
	for _, err := range c.JobResults(t.Context(), "x") {
		if !errors.Is(err, client.ErrRejected) {
			t.Error(err)
		}
	}
	// Of a connection that has no user's inbox, no output could come back.
	other := f.client(f.conn(broker.UserOps, "o", nats.InboxPrefix[:len(nats.InboxPrefix)-1]), client.Options{})
	if _, err := other.UID(); !errors.Is(err, client.ErrRejected) {
		t.Errorf("uid of nobody: %v", err)
	}
}
