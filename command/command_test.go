package command

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestDeviceIDs(t *testing.T) {
	for id, ok := range map[string]bool{
		"a": true, "0": true, "vm-device-00": true, "a--b": true, strings.Repeat("a", 63): true,
		"": false, strings.Repeat("a", 64): false, "-a": false, "a-": false, "-": false, "A": false, "a.b": false, "a*": false, "*": false, ">": false,
		"a b": false, "a\n": false, "a\x00": false, "ä": false, "a_b": false, "a/b": false, "\xff": false,
	} {
		err := CheckDeviceID(id)
		if (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
		if !ok && !errors.Is(err, &Error{Outcome: OutcomeRejected}) {
			t.Errorf("%q is %v, not rejected", id, err)
		}
	}
	if err := CheckDeviceID(strings.Repeat("x.", 1<<20)); len(err.Error()) > 400 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

func TestSubjects(t *testing.T) {
	for got, want := range map[string]string{
		Subject("d1", VerbPing):                         "device-commands.d1.ping",
		Subscription("d1"):                              "device-commands.d1.>",
		SessionSubject("d1", "u", "s"):                  "fleet.session.d1.u.s",
		SessionControlSubject("d1", "u", "s", OpCredit): "device-commands.d1.session.u.s.credit",
		StatusSubject("d1"):                             "fleet.status.d1",
		HeartbeatSubject("d1"):                          "fleet.heartbeat.d1",
		SeenSubject("d1"):                               "fleet.seen.d1",
		AuditSubject("d1", VerbExec):                    "fleet.audit.d1.exec",
		AuditSubject("d1", "reboot"):                    "fleet.audit.d1.other",
		AuditSubject("d1", "a.>"):                       "fleet.audit.d1.other",
		DesiredStateSubject("d1"):                       "$KV.desired-state.d1",
		DeviceLabelsSubject("d1"):                       "$KV.device-labels.d1",
		InboxPrefix("u"):                                "_INBOX.u",
		DeviceInboxPrefix("d1"):                         "_INBOX.dev.d1",
		UserName("https://id.example", "alice"):         "https://id.example#alice",
		UID(UserName("https://id.example", "alice")):    "5m5nupdqiqxdfe4w4w5vvhijim",
		UID("ops"): "vewdnztkexxjt74gf6vi5b4ypm",
		SessionDigest("mfrggzdfmztwq2lknnwg23tpoi"):           SessionDigest(sid),
		fmt.Sprint(SessionDigest(sid) == sid):                 "false",
		fmt.Sprint(IsUID(UID("x")), IsUID("dev"), IsUID("*")): "true false false",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestParseSubject(t *testing.T) {
	for subject, want := range map[string]Target{
		"device-commands.d1.ping":                {Device: "d1", Verb: VerbPing},
		"device-commands.d1.reboot":              {Device: "d1", Verb: "reboot"},
		"device-commands.d1.session.u.s.credit":  {Device: "d1", UID: "u", Session: "s", Op: OpCredit},
		"device-commands.d1.session.u.s.explode": {Device: "d1", UID: "u", Session: "s", Op: "explode"},
	} {
		got, err := ParseSubject(subject)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", subject, got, err)
		}
	}
	for _, subject := range []string{
		"", ".", "device-commands", "device-commands.d1", "device-commands.d1.", "device-commands..ping", "device-commands.D1.ping", "device-commands.*.ping",
		"device-commands.d1.>", "device-commands.d1.*", "device-commands.d1.ping.x", "device-commands.d1.session", "device-commands.d1.session.u.s",
		"device-commands.d1.session.u.s.in.x", "device-commands.d1.session..s.in", "device-commands.d1.session.u.*.in", "x.d1.ping", "DEVICE-COMMANDS.d1.ping",
		" device-commands.d1.ping", "device-commands.d1.pi ng", "device-commands.d1.ping\r\n",
	} {
		if got, err := ParseSubject(subject); err == nil {
			t.Errorf("%q is %+v", subject, got)
		}
	}
}

// constants are the values that the package declares with the given type.
func constants(t *testing.T, typeName string) (values []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typeName {
				return true
			}
			for _, v := range spec.Values {
				if lit, ok := v.(*ast.BasicLit); ok {
					s, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					values = append(values, s)
				}
			}
			return true
		})
	}
	slices.Sort(values)
	return values
}

// A new outcome must be listed here with its exit code, and in Outcomes.
func TestEveryOutcomeHasItsExitCode(t *testing.T) {
	codes := map[Outcome]int{
		OutcomeOK: 0, OutcomeFailed: 1, OutcomeUnsupportedVerb: 1, OutcomeDuplicate: 1, OutcomeRejected: 2, OutcomeOffline: 3, OutcomeUnknownDevice: 3,
		OutcomeTimeout: 4, OutcomeExpired: 4, OutcomeStartedNoResult: 4, OutcomeDenied: 5, OutcomeBusy: 6,
	}
	for _, name := range constants(t, "Outcome") {
		if want, ok := codes[Outcome(name)]; !ok || Outcome(name).ExitCode() != want {
			t.Errorf("%s: exit code %d, listed %v", name, Outcome(name).ExitCode(), ok)
		}
		if !slices.Contains(Outcomes(), Outcome(name)) {
			t.Errorf("%s is not in Outcomes", name)
		}
	}
	if len(Outcomes()) != len(codes) || len(constants(t, "Outcome")) != len(codes) {
		t.Errorf("%d outcomes, %d declared, %d codes", len(Outcomes()), len(constants(t, "Outcome")), len(codes))
	}
	if Outcome("new").ExitCode() != 1 {
		t.Error("an unknown outcome is not a failure")
	}
}

func TestEveryKindHasItsOutcome(t *testing.T) {
	outcomes := map[Kind]Outcome{
		KindBadRequest: OutcomeRejected, KindUnsupportedVerb: OutcomeUnsupportedVerb, KindDenied: OutcomeDenied, KindBusy: OutcomeBusy, KindDuplicate: OutcomeDuplicate,
		KindExpired: OutcomeExpired, KindNotFound: OutcomeFailed, KindRuntimeUnavailable: OutcomeFailed, KindStartedNoResult: OutcomeStartedNoResult, KindInternal: OutcomeFailed,
	}
	for _, name := range constants(t, "Kind") {
		if want, ok := outcomes[Kind(name)]; !ok || Kind(name).Outcome() != want {
			t.Errorf("%s: outcome %s, listed %v", name, Kind(name).Outcome(), ok)
		}
		if !slices.Contains(Kinds(), Kind(name)) {
			t.Errorf("%s is not in Kinds", name)
		}
	}
	if len(Kinds()) != len(outcomes) || Kind("new").Outcome() != OutcomeFailed {
		t.Errorf("%d kinds, %d listed", len(Kinds()), len(outcomes))
	}
}

func TestVerbs(t *testing.T) {
	changes := map[Verb]bool{VerbPing: false, VerbLogs: false, VerbResult: false, VerbExec: true, VerbShell: true}
	for _, name := range constants(t, "Verb") {
		v := Verb(name)
		if v == AuditOther {
			continue
		}
		if want, ok := changes[v]; !ok || v.Changes() != want || !v.Known() || AuditVerb(v) != v {
			t.Errorf("%s: changes %v, known %v", v, v.Changes(), v.Known())
		}
	}
	if Verb("reboot").Known() || Verb("").Known() || Verb(sessionToken).Known() || AuditOther.Known() {
		t.Error("something else is a verb")
	}
}

func TestErrorsMatchByOutcomeAndKind(t *testing.T) {
	cause := errors.New("cause")
	e := &Error{Outcome: OutcomeUnknownDevice, Verb: VerbPing, DeviceID: "d1", Message: "m", Err: cause}
	if e.Error() != "ping d1: unknown_device: m: cause" || !errors.Is(e, cause) {
		t.Error(e)
	}
	for _, tt := range []struct {
		err, target *Error
		want        bool
	}{
		{e, &Error{Outcome: OutcomeOffline}, true},
		{e, &Error{Outcome: OutcomeUnknownDevice}, true},
		{&Error{Outcome: OutcomeOffline}, &Error{Outcome: OutcomeUnknownDevice}, false},
		{NewError(KindNotFound, "x"), &Error{Outcome: OutcomeFailed, Kind: KindNotFound}, true},
		{NewError(KindNotFound, "x"), &Error{Outcome: OutcomeFailed, Kind: KindInternal}, false},
		{NewError(KindNotFound, "x"), &Error{Outcome: OutcomeFailed}, true},
	} {
		if got := errors.Is(fmt.Errorf("wrapped: %w", tt.err), tt.target); got != tt.want {
			t.Errorf("%v is %v: %v", tt.err, tt.target, got)
		}
	}
}

func TestRequestHeadersSurviveTheWire(t *testing.T) {
	for _, want := range []RequestHeader{
		{Protocol: 1},
		{Protocol: 2, RequestID: reqID, Deadline: at, Instance: "i", Job: jobID, OperatorSub: "https://id.example#alice", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		{Protocol: 1, Deadline: at.Truncate(time.Second)},
	} {
		h := map[string][]string{"Other": {"x"}}
		want.Write(h)
		got, err := ReadRequestHeader(h)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
	}
	h := map[string][]string{}
	RequestHeader{Deadline: at.In(time.FixedZone("x", 3600))}.Write(h)
	if got := h[HeaderDeadline][0]; got != "2026-01-02T15:04:05.123456789Z" {
		t.Errorf("deadline on the wire: %s", got)
	}
	if got, err := ReadRequestHeader(nil); err != nil || got != (RequestHeader{Protocol: 1}) {
		t.Errorf("no headers: %+v, %v", got, err)
	}
	// NATS tells header names apart by case: another case is another header.
	if got, err := ReadRequestHeader(map[string][]string{"x-harmony-deadline": {"x"}}); err != nil || !got.Deadline.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestBadRequestHeadersAreNamed(t *testing.T) {
	for name, values := range map[string][]string{
		HeaderProtocol:    {"0", "-1", "x", "1.0", " 1", "99999999999"},
		HeaderRequestID:   {"x", strings.ToUpper(reqID), strings.ReplaceAll(reqID, "-", ""), "{" + reqID + "}", "urn:uuid:" + reqID, reqID + " "},
		HeaderDeadline:    {"x", "2026-01-02T15:04:05+01:00", "2026-01-02T15:04:05", "2026-01-02", "2026-01-02T15:04:05,5Z", "2026-01-02T5:04:05Z", "2026-02-30T15:04:05Z", "1767366245"},
		HeaderInstance:    {strings.Repeat("x", 65)},
		HeaderOperatorSub: {strings.Repeat("x", 513)},
		HeaderTraceparent: {strings.Repeat("x", 257)},
	} {
		for _, value := range values {
			_, err := ReadRequestHeader(map[string][]string{name: {value}})
			if !errors.Is(err, &Error{Outcome: OutcomeRejected, Kind: KindBadRequest}) {
				t.Errorf("%s: %q gives %v", name, value, err)
			} else if name != HeaderRequestID && !strings.Contains(err.Error(), name) {
				t.Errorf("%v does not name %s", err, name)
			}
		}
		if _, err := ReadRequestHeader(map[string][]string{name: {"1", "1"}}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s given twice: %v", name, err)
		}
	}
}

func TestRequestIDsSortByTimeAndAreAccepted(t *testing.T) {
	a, b := NewRequestID(), NewRequestID()
	if a >= b || CheckRequestID(a) != nil || a[14] != '7' {
		t.Errorf("%s, %s", a, b)
	}
	if s := NewSessionID(); CheckSessionID(s) != nil || s == NewSessionID() {
		t.Error(s)
	}
	for _, bad := range []string{"", "x", strings.ToUpper(sid), sid + "a", sid[:25] + "j", "*", sid[:25] + "."} {
		if err := CheckSessionID(bad); err == nil || bad != "" && bad != "*" && strings.Contains(err.Error(), bad+" ") {
			t.Errorf("session id %q: %v", bad, err)
		}
	}
}

func TestNeighbouringProtocolsServeEachOther(t *testing.T) {
	for _, tt := range []struct {
		mine, theirs int
		ok           bool
	}{{1, 1, true}, {1, 2, true}, {2, 1, true}, {2, 3, true}, {1, 3, false}, {3, 1, false}, {5, 4, true}, {5, 3, false}} {
		err := CheckProtocol(tt.mine, tt.theirs)
		if (err == nil) != tt.ok {
			t.Errorf("%d serves %d: %v", tt.mine, tt.theirs, err)
		}
		if !tt.ok && !errors.Is(err, &Error{Outcome: OutcomeRejected}) {
			t.Errorf("%v is not rejected", err)
		}
	}
}

// A protocol N client of an N-1 agent, and the reverse: whatever is new is left
// out or ignored.
func TestNeighboursReadEachOther(t *testing.T) {
	newer := []byte(`{"device_id":"d","agent_version":"9","uptime_s":1,"something_new":{"a":[1]}}`)
	if got, err := DecodeReply[PingReply](nil, newer); err != nil || got.UptimeS != 1 {
		t.Errorf("newer reply: %+v, %v", got, err)
	}
	if got, err := DecodeRequest[PingRequest](VerbPing, []byte(`{"something_new":1}`)); err != nil {
		t.Errorf("newer ping: %+v, %v", got, err)
	}
	if got, err := DecodeRequest[LogsRequest](VerbLogs, []byte(`{"container":"web","something_new":1}`)); err != nil || got.Container != "web" {
		t.Errorf("newer logs: %+v, %v", got, err)
	}
	if _, err := DecodeDocument[Heartbeat]([]byte(`{"schema":1,"something_new":1}`)); err != nil {
		t.Errorf("newer heartbeat: %v", err)
	}
	e, ok := DecodeError(map[string][]string{HeaderError: {"something_new"}}, []byte(`{"error":{"kind":"something_new","message":"m"}}`))
	if !ok || e.Outcome != OutcomeFailed || e.Kind != "something_new" || e.Message != "m" {
		t.Errorf("newer kind: %+v", e)
	}
}

// The contract is a leaf: nothing of this module, and no NATS.
func TestImportsStayWithinBounds(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{"github.com/harmony-fleet/fleet/command": true, "github.com/google/uuid": true}
	for _, path := range strings.Fields(string(out)) {
		if !allowed[path] {
			t.Errorf("imports %s; allowed are %v and the standard library", path, slices.Sorted(maps.Keys(allowed)))
		}
	}
}
