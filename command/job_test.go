package command

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

const jobSecret = "mfrggzdfmztwq2lknnwg23tpoi"

func TestJobIDCarriesItsTime(t *testing.T) {
	id := NewJobID(at)
	if err := CheckJobID(id); err != nil {
		t.Fatal(err)
	}
	if got := JobTime(id); !got.Equal(at.Truncate(time.Millisecond)) {
		t.Errorf("the time of %s is %v, want %v", id, got, at)
	}
	if NewJobID(at) == id {
		t.Error("two jobs of one moment have one id")
	}
}

func TestWhatIsNoJobIDIsRefused(t *testing.T) {
	for _, id := range []string{"", "x", uuid.Nil.String(), uuid.NewString(), strings.ToUpper(jobID), "{" + jobID + "}", jobID + " "} {
		wantRejected(t, CheckJobID(id))
	}
}

// Who goes on with a job asks with the ids that it began with: they are pinned.
func TestIDsOfAJobsParts(t *testing.T) {
	request := JobRequestID(jobID, "vm-device-00")
	if want := "01890a5d-ac96-7d75-83c7-d1c9935d2bb5"; request != want {
		t.Errorf("request id %s, want %s", request, want)
	}
	if err := CheckJobID(request); err != nil { // it is a UUIDv7 too
		t.Error(err)
	}
	if !JobTime(request).Equal(JobTime(jobID)) {
		t.Error("the request has another time than its job")
	}
	session := JobSessionID(jobSecret, "vm-device-00")
	if want := "obwokbimypoosawvqtfotdnyz4"; session != want {
		t.Errorf("session id %s, want %s", session, want)
	}
	if err := CheckSessionID(session); err != nil {
		t.Error(err)
	}
	if slot := JobSlot(jobID); slot != "07" {
		t.Errorf("slot %s", slot)
	}
	if JobRequestID(jobID, "a") == JobRequestID(jobID, "b") || JobSessionID(jobSecret, "a") == JobSessionID(jobSecret, "b") ||
		JobSessionID("another", "a") == JobSessionID(jobSecret, "a") {
		t.Error("devices, or jobs, share an id")
	}
}

func TestEveryJobHasASlotThatIsListed(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		slot := JobSlot(NewJobID(at))
		if !slices.Contains(AllJobSlots(), slot) {
			t.Fatalf("slot %s is not listed", slot)
		}
		seen[slot] = true
	}
	if len(seen) != JobSlots {
		t.Errorf("1000 jobs use %d slots of %d", len(seen), JobSlots)
	}
}

func TestJobRecordIsOfItsSubject(t *testing.T) {
	good := JobResult{Schema: Schema, Job: jobID, DeviceID: "d", UID: UID("ops"), RequestID: reqID, Verb: VerbExec, Outcome: OutcomeOK}
	subject := JobSubject("d", JobSlot(jobID))
	for _, c := range []struct {
		name    string
		subject string
		change  func(*JobResult)
		refused bool
		other   bool
	}{
		{name: "good", subject: subject},
		{name: "another device", subject: JobSubject("e", JobSlot(jobID)), refused: true},
		{name: "another slot", subject: JobSubject("d", "zz"), refused: true},
		{name: "another job of the slot", subject: JobSubject("d", JobSlot(otherOfSlot(t))), change: func(r *JobResult) { r.Job = otherOfSlot(t) }, other: true},
		{name: "no job", subject: subject, change: func(r *JobResult) { r.Job = "" }, refused: true},
		{name: "no device id", subject: JobSubject("*", JobSlot(jobID)), change: func(r *JobResult) { r.DeviceID = "*" }, refused: true},
		{name: "no request id", subject: subject, change: func(r *JobResult) { r.RequestID = "\x1b[2J" }, refused: true},
		{name: "an outcome that is none", subject: subject, change: func(r *JobResult) { r.Outcome = "grand" }, refused: true},
		{name: "an outcome that no device has", subject: subject, change: func(r *JobResult) { r.Outcome = OutcomeOffline }, refused: true},
		{name: "a kind with an escape", subject: subject, change: func(r *JobResult) { r.Kind = "\x1b[2J" }, refused: true},
		{name: "an end with an escape", subject: subject, change: func(r *JobResult) { r.End = "\x1b[2J" }, refused: true},
		{name: "another schema", subject: subject, change: func(r *JobResult) { r.Schema = 2 }, refused: true},
		{name: "too large", subject: subject, change: func(r *JobResult) { r.UID = strings.Repeat("x", MaxJobResult) }, refused: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := good
			if c.change != nil {
				c.change(&r)
			}
			data, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			got, other, err := DecodeJobResult(c.subject, jobID, data)
			if (err != nil) != c.refused || other != c.other || (!c.refused && !c.other && got != r) {
				t.Errorf("%+v, %v, %v", got, other, err)
			}
		})
	}
}

// otherOfSlot is another job in the slot of jobID.
func otherOfSlot(t *testing.T) string {
	t.Helper()
	for i := range 10000 {
		if id := stamped(int64(i), uuid.UUID{}).String(); JobSlot(id) == JobSlot(jobID) {
			return id
		}
	}
	t.Fatal("no other job has the slot")
	return ""
}

func FuzzDecodeJobResult(f *testing.F) {
	seed(f)
	subject := JobSubject("d", JobSlot(jobID))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, other, err := DecodeJobResult(subject, jobID, data)
		if err != nil || other {
			return
		}
		for _, s := range []string{string(r.Outcome), string(r.Kind), string(r.End), r.RequestID, r.DeviceID, r.Job} {
			if Printable(s) != s {
				t.Fatalf("%q would go to a terminal", s)
			}
		}
		if r.DeviceID != "d" || r.Job != jobID || r.Schema != Schema {
			t.Fatalf("%+v", r)
		}
		sameAgain(t, r, DecodeDocument[JobResult])
	})
}
