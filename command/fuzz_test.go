package command

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// seed adds every golden payload, so that fuzzing starts from what is real.
func seed(f *testing.F) {
	f.Helper()
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{"", "{}", "null", "[", `{"a":{"a":[{"a":1,"a":2}]}}`, "{\"\xff\":1}", `{"schema":1}`, `{"schema":1e0}`} {
		f.Add([]byte(s))
	}
}

// An accepted id never changes how many tokens a subject has.
func FuzzCheckDeviceID(f *testing.F) {
	for _, s := range []string{"vm-device-00", "a", "-", "a.b", "*", ">", "", "A", "\x00", strings.Repeat("a", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if CheckDeviceID(id) != nil {
			return
		}
		for _, subject := range []string{
			Subject(id, VerbPing), Subscription(id), SessionSubject(id, "u", "s"), SessionControlSubject(id, "u", "s", OpIn), StatusSubject(id), HeartbeatSubject(id),
			SeenSubject(id), AuditSubject(id, VerbPing), JobSubject(id, "00"), DesiredStateSubject(id), DeviceLabelsSubject(id), DeviceInboxPrefix(id),
		} {
			honest := strings.Replace(subject, id, "x", 1)
			if strings.Count(subject, ".") != strings.Count(honest, ".") || strings.ContainsAny(strings.TrimSuffix(subject, ".>"), "*> \t\r\n\x00") {
				t.Fatalf("id %q gives subject %q", id, subject)
			}
		}
		if target, err := ParseSubject(Subject(id, VerbPing)); err != nil || target.Device != id {
			t.Fatalf("id %q comes back as %+v, %v", id, target, err)
		}
	})
}

// A subject that is accepted is the one that its parts make.
func FuzzParseSubject(f *testing.F) {
	for _, s := range []string{"device-commands.d1.ping", "device-commands.d1.session.u.s.in", "device-commands.d1.>", "device-commands..ping", ".....", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		target, err := ParseSubject(subject)
		if err != nil {
			return
		}
		back := Subject(target.Device, target.Verb)
		if target.Verb == "" {
			back = SessionControlSubject(target.Device, target.UID, target.Session, target.Op)
		}
		if back != subject || CheckDeviceID(target.Device) != nil {
			t.Fatalf("%q is %+v, which makes %q", subject, target, back)
		}
	})
}

// A header that is accepted, written again, reads as the same.
func FuzzReadRequestHeader(f *testing.F) {
	f.Add("1", reqID, "2026-01-02T15:04:05.000000000Z", "i", "sub", "00-1-2-3", jobID, false)
	f.Add("", "", "", "", "", "", "", true)
	f.Add("01", strings.ToUpper(reqID), "0000-01-01T00:00:00Z", "*", "\r\n", "x", "00000000-0000-7000-8000-000000000000", false)
	f.Add("9", "", "9999-12-31T23:59:60.999999999999Z", "", "", "", "x", false)
	f.Fuzz(func(t *testing.T, protocol, id, deadline, instance, sub, trace, job string, twice bool) {
		h := map[string][]string{HeaderProtocol: {protocol}, HeaderRequestID: {id}, HeaderDeadline: {deadline}, HeaderInstance: {instance}, HeaderOperatorSub: {sub}, HeaderTraceparent: {trace}, HeaderJob: {job}}
		if twice {
			h[HeaderDeadline] = append(h[HeaderDeadline], deadline)
		}
		got, err := ReadRequestHeader(h)
		if err != nil {
			wantRejected(t, err)
			return
		}
		if twice {
			t.Fatal("two deadlines are one")
		}
		again := map[string][]string{}
		got.Write(again)
		back, err := ReadRequestHeader(again)
		if err != nil || !back.Deadline.Equal(got.Deadline) {
			t.Fatalf("%+v became %+v, %v", got, back, err)
		}
		back.Deadline = got.Deadline
		if back != got {
			t.Fatalf("%+v became %+v", got, back)
		}
	})
}

func wantRejected(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, &Error{Outcome: OutcomeRejected, Kind: KindBadRequest}) {
		t.Fatalf("not a rejection: %v", err)
	}
}

func FuzzDecodePingRequest(f *testing.F)   { fuzzRequest[PingRequest](f, VerbPing) }
func FuzzDecodeLogsRequest(f *testing.F)   { fuzzRequest[LogsRequest](f, VerbLogs) }
func FuzzDecodeExecRequest(f *testing.F)   { fuzzRequest[ExecRequest](f, VerbExec) }
func FuzzDecodeShellRequest(f *testing.F)  { fuzzRequest[ShellRequest](f, VerbShell) }
func FuzzDecodeResultRequest(f *testing.F) { fuzzRequest[ResultRequest](f, VerbResult) }

// A request that is accepted means the same after it was written again.
func fuzzRequest[T any](f *testing.F, verb Verb) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeRequest[T](verb, data)
		if err != nil {
			wantRejected(t, err)
			return
		}
		sameAgain(t, got, func(b []byte) (T, error) { return DecodeRequest[T](verb, b) })
	})
}

func sameAgain[T any](t *testing.T, got T, read func([]byte) (T, error)) {
	t.Helper()
	data, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > MaxDocument {
		return // escapes made it longer
	}
	back, err := read(data)
	if err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	first, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	second, err := json.Marshal(back)
	if err != nil || !reflect.DeepEqual(first, second) {
		t.Fatalf("%s became %s, %v", first, second, err)
	}
}

func FuzzDecodePingReply(f *testing.F)    { fuzzReply[PingReply](f) }
func FuzzDecodeExecReply(f *testing.F)    { fuzzReply[ExecReply](f) }
func FuzzDecodeSessionReply(f *testing.F) { fuzzReply[SessionReply](f) }
func FuzzDecodeResultReply(f *testing.F)  { fuzzReply[ResultReply](f) }
func FuzzDecodeSessionEnd(f *testing.F)   { fuzzReply[SessionEnd](f) }
func FuzzDecodeCredit(f *testing.F)       { fuzzReply[Credit](f) }

func fuzzReply[T any](f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeReply[T](nil, data)
		if err != nil {
			if !errors.Is(err, ErrBadReply) {
				t.Fatalf("not a bad reply: %v", err)
			}
			return
		}
		sameAgain(t, got, func(b []byte) (T, error) { return DecodeReply[T](nil, b) })
	})
}

// Whatever a device answers, the error fits a line and a terminal.
func FuzzDecodeError(f *testing.F) {
	f.Add("bad_request", []byte(`{"error":{"kind":"bad_request","message":"m"}}`))
	f.Add("", []byte(`{"error":{"message":"\u001b[2J\u202e"}}`))
	f.Add("x\r\n", []byte("{"))
	f.Fuzz(func(t *testing.T, kind string, data []byte) {
		e, ok := DecodeError(map[string][]string{HeaderError: {kind}}, data)
		if !ok || e.Outcome == OutcomeOK || e.Outcome == "" || !e.Kind.wellFormed() || len(e.Message) > MaxMessage || Printable(e.Message) != e.Message {
			t.Fatalf("%+v, %v", e, ok)
		}
		h := map[string][]string{}
		back, ok := DecodeError(h, EncodeError(h, e))
		if !ok || *back != *e {
			t.Fatalf("%+v became %+v", e, back)
		}
	})
}

func FuzzDecodeStatus(f *testing.F)       { fuzzDocument[Status](f) }
func FuzzDecodeHeartbeat(f *testing.F)    { fuzzDocument[Heartbeat](f) }
func FuzzDecodeAuditRecord(f *testing.F)  { fuzzDocument[AuditRecord](f) }
func FuzzDecodeDesiredState(f *testing.F) { fuzzDocument[DesiredState](f) }
func FuzzDecodeDeviceLabels(f *testing.F) { fuzzDocument[DeviceLabels](f) }

func fuzzDocument[T Document](f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeDocument[T](data)
		if err != nil {
			return
		}
		sameAgain(t, got, DecodeDocument[T])
	})
}

// A chunk that is accepted, written again, reads as the same.
func FuzzReadChunk(f *testing.F) {
	f.Add("1", "stdout", "")
	f.Add("", "progress", "")
	f.Add("18446744073709551615", "", "eof")
	f.Add("0", "pty", "eof")
	f.Fuzz(func(t *testing.T, seq, stream, end string) {
		h := map[string][]string{}
		for name, value := range map[string]string{HeaderSeq: seq, HeaderStream: stream, HeaderEnd: end} {
			if value != "" {
				h[name] = []string{value}
			}
		}
		c, err := ReadChunk(h)
		if err != nil {
			return
		}
		again := map[string][]string{}
		c.Write(again)
		if !reflect.DeepEqual(h, again) {
			t.Fatalf("%v is %+v, which is %v", h, c, again)
		}
	})
}

func FuzzDecodeSession(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, err := range []error{
			second(DecodeSession[Credit](data)), second(DecodeSession[Progress](data)), second(DecodeSession[SessionEnd](data)),
			second(DecodeSession[Resize](data)), second(DecodeSession[Signal](data)),
		} {
			if err == nil && !json.Valid(data) {
				t.Fatalf("read %q", data)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }
