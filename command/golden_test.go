package command

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/golden/*.json")

var (
	at     = time.Date(2026, 1, 2, 15, 4, 5, 123456789, time.UTC)
	digest = PayloadDigest([]byte("{}"))
	reqID  = "01890a5d-ac96-774b-bcce-b302099a8057"

	jobID = "01890a5d-ac96-774b-bcce-b302099a8057"
	sid   = "mfrggzdfmztwq2lknnwg23tpoi"
)

func ptr[T any](v T) *T { return &v }

// fixture is a value, and how its bytes are read.
type fixture struct {
	value any
	read  func([]byte) (any, error)
}

func request[T any](verb Verb, v T) fixture {
	return fixture{v, func(b []byte) (any, error) { return DecodeRequest[T](verb, b) }}
}

func reply[T any](v T) fixture {
	return fixture{v, func(b []byte) (any, error) { return DecodeReply[T](nil, b) }}
}

func document[T Document](v T) fixture {
	return fixture{v, func(b []byte) (any, error) { return DecodeDocument[T](b) }}
}

// fixtures holds every payload of the wire contract, each with all fields set
// and, where fields may be absent, at its least.
var fixtures = map[string]fixture{
	"ping_request": request(VerbPing, PingRequest{}),
	"ping_reply": reply(PingReply{
		DeviceID: "vm-device-00", AgentVersion: "0.1.0", UptimeS: 12, BootID: "b", Instance: "i", Protocol: 1, Runtime: RuntimeReady,
		Time: &at, DesiredRevision: 7, MemoryRSSBytes: 11 << 20,
	}),
	"ping_reply_least": reply(PingReply{DeviceID: "vm-device-00", AgentVersion: "0.1.0", UptimeS: 12}),
	"logs_request": request(VerbLogs, LogsRequest{
		Session: &Session{ID: sid, Credit: DefaultLogsWindow}, Container: "hello/web", Follow: true, Tail: ptr(100),
		Since: "2026-01-02T15:04:05Z", Until: "2026-01-02T16:04:05Z", Timestamps: true, Stdout: true, Stderr: true, Reopen: true,
	}),
	"logs_request_least": request(VerbLogs, LogsRequest{Container: "web", Stdout: true}),
	"exec_request": request(VerbExec, ExecRequest{
		Session: &Session{ID: sid, Credit: DefaultExecWindow}, Container: "web", Host: true, Argv: []string{"ls", "-l"},
		Env: map[string]string{"A": "1", "a": "2"}, Workdir: "/", User: "nobody", Stdin: true, TTY: true, TimeoutMS: 60000,
	}),
	"exec_request_least": request(VerbExec, ExecRequest{Argv: []string{"ls"}}),
	"exec_reply":         reply(ExecReply{ExitCode: 3, Stdout: []byte("out\n"), Stderr: []byte{0xff, 0}, Truncated: true}),
	"exec_reply_least":   reply(ExecReply{Stdout: []byte{}, Stderr: []byte{}}),
	"shell_request": request(VerbShell, ShellRequest{
		Session: &Session{ID: sid, Credit: DefaultExecWindow}, Container: "web", Host: true, Argv: []string{"bash"},
		Env: map[string]string{"A": "1"}, Workdir: "/", User: "nobody", Rows: 40, Cols: 120, Term: "xterm-256color",
	}),
	"session_reply":          reply(SessionReply{Session: sid}),
	"result_request":         request(VerbResult, ResultRequest{RequestID: reqID}),
	"result_reply":           reply(ResultReply{RequestID: reqID, Verb: VerbExec, Outcome: OutcomeFailed, ExitCode: ptr(1), Message: "m"}),
	"result_reply_least":     reply(ResultReply{RequestID: reqID, Verb: VerbShell, Outcome: OutcomeOK}),
	"session_credit":         reply(Credit{Ack: 41, Credit: 262144}),
	"session_credit_resend":  reply(Credit{Ack: 41, Credit: 262144, Resend: true}),
	"session_progress":       reply(Progress{Sent: 43, Ack: 7, Credit: InputWindow, Resend: true, Notice: "n"}),
	"session_progress_least": reply(Progress{}),
	"session_resize":         reply(Resize{Rows: 40, Cols: 120}),
	"session_signal":         reply(Signal{Name: "TERM"}),
	"session_end":            reply(SessionEnd{ExitCode: ptr(0), Bytes: SessionBytes{Stdout: 10, Stderr: 2}}),
	"session_end_error":      reply(SessionEnd{Error: &ErrorDetail{Kind: KindInternal, Message: "m"}}),
	"error_reply":            reply(ErrorReply{Error: ErrorDetail{Kind: KindBadRequest, Message: "m", RequestID: reqID}}),
	"status":                 document(fullStatus()),
	"status_least":           document(Status{Schema: Schema, DeviceID: "d", AgentVersion: "0.1.0", Protocol: 1, BootID: "b", Instance: "i", StartedAt: at, Time: at, Runtime: RuntimeDisabled}),
	"heartbeat":              document(Heartbeat{Schema: Schema, DeviceID: "d", BootID: "b", Instance: "i", Seq: 9, Time: at, UptimeS: 1, SubscribedForMS: 2, DesiredRevision: 3, MemoryRSSBytes: 4, Metrics: map[string]float64{"commands_total": 5}}),
	"audit_record":           document(fullAudit()),
	"audit_record_denied":    document(AuditRecord{Schema: Schema, DeviceID: "d", BootID: "b", Instance: "i", Seq: 1, Time: at, Verb: "reboot", Event: AuditCommand, PayloadSHA256: digest, Outcome: OutcomeDenied, Kind: KindDenied, Reason: "no identity"}),
	"job_result": document(JobResult{
		Schema: Schema, Job: jobID, DeviceID: "d", UID: UID("ops"), RequestID: JobRequestID(jobID, "d"), Time: at, Verb: VerbExec,
		Outcome: OutcomeFailed, Kind: KindInternal, End: EndCancelled, ExitCode: ptr(3), DurationUS: 1500, Bytes: &SessionBytes{Stdout: 2, Stderr: 3},
	}),
	"job_result_least": document(JobResult{Schema: Schema, Job: jobID, DeviceID: "d", UID: UID("ops"), RequestID: JobRequestID(jobID, "d"), Time: at, Verb: VerbExec, Outcome: OutcomeDenied, Kind: KindDenied}),
	"desired_state": document(DesiredState{Schema: Schema, Deployments: map[string]Score{
		"hello": {Type: ScorePodmanV0, Data: json.RawMessage(`{"services":[{"name":"hello","image":"docker.io/library/busybox:1"}]}`)},
	}}),
	"podman_v0": reply(PodmanV0{Services: []Service{{
		Name: "hello", Image: "busybox", Command: []string{"httpd"}, Entrypoint: []string{"/bin/busybox"}, Workdir: "/srv", User: "1000:1000",
		Pull: PullAlways, StopTimeoutS: 20,
		Health: &HealthCheck{Command: []string{"true"}, IntervalS: 10, TimeoutS: 5, Retries: 2, StartPeriodS: 60},
		Env:    map[string]string{"A": "1"}, Ports: []string{"8080:80"},
		Volumes: []string{"data:/data:ro"}, Restart: "always", Resources: Resources{MemoryBytes: 1 << 20, CPUs: 0.5},
	}, {Name: "least", Image: "busybox"}}}),
	"device_labels": document(DeviceLabels{Schema: Schema, Labels: map[string]string{"site": "lab"}}),
}

func fullStatus() Status {
	return Status{
		Schema: Schema, DeviceID: "d", AgentVersion: "0.1.0", Protocol: 1, BootID: "b", Instance: "i", StartedAt: at, Time: at,
		Labels: map[string]string{"site": "lab"}, Runtime: RuntimeReady, DesiredRevision: 7,
		Deployments: map[string]DeploymentStatus{"hello": {
			Phase: PhaseRunning, Revision: 7, Error: &ErrorDetail{Kind: KindBadRequest, Message: "m"},
			Services: map[string]ServiceStatus{"web": {
				Phase: PhaseBackoff, ContainerID: "c", Image: "busybox", ImageDigest: "sha256:0", StartedAt: &at, Restarts: 2, ExitCode: ptr(1), LastError: "e",
				Health: "healthy", Progress: "1.0 of 2.0 MB", NextTry: &at,
			}},
		}},
		Conditions: []Condition{{Type: ConditionIDClash, Status: true, Reason: "r", Message: "m", Since: at}},
	}
}

func fullAudit() AuditRecord {
	return AuditRecord{
		Schema: Schema, DeviceID: "d", BootID: "b", Instance: "i", Seq: 3, Prev: digest, Time: at, Verb: VerbExec, Event: AuditEnd,
		Caller: AuditCaller{User: UserName("https://id.example", "alice"), UID: UID(UserName("https://id.example", "alice")), Account: "OPS"}, RequestID: reqID, Session: SessionDigest(sid),
		PayloadSHA256: digest, Outcome: OutcomeFailed, Kind: KindInternal, Reason: "r", Replayed: true, DurationUS: 1500,
		ExitCode: ptr(1), Bytes: &AuditBytes{Stdin: 1, Stdout: 2, Stderr: 3}, Lost: 4,
	}
}

func TestWireFormatIsPinned(t *testing.T) {
	for name, f := range fixtures {
		t.Run(name, func(t *testing.T) {
			compact, err := json.Marshal(f.value)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := json.Indent(&got, compact, "", "  "); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
			path := filepath.Join("testdata", "golden", name+".json")
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("the wire format changed; old clients and agents read %s:\n%s\nnow:\n%s", path, want, got.Bytes())
			}
			// And it reads back as it was.
			back, err := f.read(want)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := json.Marshal(back); err != nil || !bytes.Equal(b, compact) {
				t.Errorf("reads back as %s, %v", b, err)
			}
		})
	}
}

func TestEveryGoldenFileHasAFixture(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".json"); fixtures[name].value == nil {
			t.Errorf("%s belongs to no fixture", f)
		}
	}
}

// Names are snake_case, and every exported field has one.
func TestFieldNamesAreSnakeCase(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var check func(reflect.Type)
	check = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			check(typ.Elem())
		case reflect.Struct:
			if seen[typ] || typ == reflect.TypeFor[time.Time]() {
				return
			}
			seen[typ] = true
			for i := range typ.NumField() {
				f := typ.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name == "" || name != strings.ToLower(name) || strings.ContainsAny(name, "- ") || f.Anonymous {
					t.Errorf("%s.%s is %q on the wire", typ, f.Name, name)
				}
				check(f.Type)
			}
		}
	}
	for _, f := range fixtures {
		check(reflect.TypeOf(f.value))
	}
}
