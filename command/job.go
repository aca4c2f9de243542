package command

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// JobLifetime is how long a job may ask devices, counted from the time in its
// id. Until then a device remembers every request of the job, so that a job that
// was interrupted may ask everybody again and nothing runs twice; afterwards it
// refuses the job's requests as expired.
const JobLifetime = 8 * time.Hour

// MaxJobAhead is how far the time in a job's id may lie ahead of broker time.
const MaxJobAhead = time.Minute

// JobSlots is how many subjects a device has for the results of jobs. A reader
// who wants those of one job reads one subject of each device.
const JobSlots = 16

// NewJobID makes the id of a job that begins now, by broker time: a UUIDv7
// (RFC 9562), whose time is precise to the millisecond.
func NewJobID(now time.Time) string {
	return stamped(now.UnixMilli(), uuid.New()).String()
}

// stamped gives a UUID the version 7 and a time, in milliseconds.
func stamped(ms int64, id uuid.UUID) uuid.UUID {
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// CheckJobID refuses what is not a UUIDv7 in its 36-character lower-case form,
// with an [*Error] of [KindBadRequest].
func CheckJobID(id string) error {
	if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id || parsed.Version() != 7 || parsed.Variant() != uuid.RFC4122 {
		return badRequest("job id %s: want a lower-case UUIDv7 such as 01890a5d-ac96-774b-bcce-b302099a8057", quote(id))
	}
	return nil
}

// JobTime is the time in a job's id, which must have passed [CheckJobID].
func JobTime(id string) time.Time { return time.UnixMilli(jobMS(uuid.MustParse(id))) }

func jobMS(id uuid.UUID) int64 {
	var ms int64
	for _, b := range id[:6] {
		ms = ms<<8 | int64(b)
	}
	return ms
}

// JobRequestID is the id of a job's request to a device: a UUIDv7 with the time
// of the job, the rest of which is a hash of job and device. Whoever goes on
// with a job asks with the same id, which a device runs once.
func JobRequestID(job, device string) string {
	sum := sha256.Sum256([]byte("job request\x00" + job + "\x00" + device))
	return stamped(jobMS(uuid.MustParse(job)), uuid.UUID(sum[:16])).String()
}

// JobSessionID is the id of a job's session with a device. secret is the job's
// own, at least 128 random bits: a session's id is a secret between the caller
// and that device (see [NewSessionID]), and no device can reckon another's.
func JobSessionID(secret, device string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(device))
	return lowerBase32.EncodeToString(mac.Sum(nil)[:16])
}

// JobSlot is the slot of a job: two hex digits, below [JobSlots].
func JobSlot(job string) string {
	sum := sha256.Sum256([]byte(job))
	return hex.EncodeToString([]byte{sum[0] % JobSlots})
}

// AllJobSlots lists every slot: "00" to "0f".
func AllJobSlots() []string {
	slots := make([]string, JobSlots)
	for i := range slots {
		slots[i] = fmt.Sprintf("%02x", i)
	}
	return slots
}

// JobSubject is where a device publishes how its part of a job ended:
// "fleet.job.<device>.<slot>".
func JobSubject(device, slot string) string { return jobPrefix + "." + device + "." + slot }

// JobSubjects matches all of a device's: "fleet.job.vm-device-00.*".
func JobSubjects(device string) string { return JobSubject(device, "*") }

// JobResult is what a device keeps at the broker of its part of a job, which
// began with a command that named the job in [HeaderJob]. Arguments, environment
// and output never enter it. The device says it of itself: of what others did it
// cannot speak.
type JobResult struct {
	Schema    int       `json:"schema"`
	Job       string    `json:"job"`
	DeviceID  string    `json:"device_id"`
	UID       string    `json:"uid"` // of the caller, as verified by the device
	RequestID string    `json:"request_id,omitempty"`
	Time      time.Time `json:"time"` // broker time at which the command arrived
	Verb      Verb      `json:"verb"`

	Outcome    Outcome       `json:"outcome"`
	Kind       Kind          `json:"kind,omitempty"`
	End        EndReason     `json:"end,omitempty"` // why its session ended, if not by itself
	ExitCode   *int          `json:"exit_code,omitempty"`
	DurationUS int64         `json:"duration_us"` // microseconds
	Bytes      *SessionBytes `json:"bytes,omitempty"`
}

func (r JobResult) schema() int { return r.Schema }

// MaxJobResult is the largest record of a job that is stored, in bytes.
const MaxJobResult = 2 << 10

// DecodeJobResult reads the record of job that was found on subject, and refuses
// one that speaks of another job or device than its subject does. Where the
// record is of another job, other is true.
func DecodeJobResult(subject, job string, data []byte) (r JobResult, other bool, err error) {
	if len(data) > MaxJobResult {
		return JobResult{}, false, fmt.Errorf("job record has %d bytes, more than the %d allowed", len(data), MaxJobResult)
	}
	r, err = DecodeDocument[JobResult](data)
	switch {
	case err != nil:
		return JobResult{}, false, err
	case CheckJobID(r.Job) != nil || CheckDeviceID(r.DeviceID) != nil || subject != JobSubject(r.DeviceID, JobSlot(r.Job)):
		return JobResult{}, false, fmt.Errorf("job record on %s: it speaks of the device %s and the job %s", quote(subject), quote(r.DeviceID), quote(r.Job))
	case r.Job != job:
		return JobResult{}, true, nil
	case CheckRequestID(r.RequestID) != nil:
		return JobResult{}, false, fmt.Errorf("job record on %s: request id %s is none", quote(subject), quote(r.RequestID))
	case !r.Outcome.Known() || r.Outcome == OutcomeOffline || r.Outcome == OutcomeUnknownDevice:
		return JobResult{}, false, fmt.Errorf("job record on %s: %s is no outcome of a device", quote(subject), quote(string(r.Outcome)))
	case r.Kind != "" && !r.Kind.wellFormed(), r.End != "" && !Kind(r.End).wellFormed():
		return JobResult{}, false, fmt.Errorf("job record on %s: kind or end is not one word", quote(subject))
	}
	return r, false, nil
}
