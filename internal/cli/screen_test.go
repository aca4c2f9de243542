package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

func TestOutputOfDevicesComesInLines(t *testing.T) {
	for _, tt := range []struct {
		name   string
		writes []string
		want   string
	}{
		{"nothing", nil, ""},
		{"a line", []string{"a\n"}, "d   | a\n"},
		{"lines in pieces", []string{"a", "b\nc", "\n"}, "d   | ab\nd   | c\n"},
		{"an empty line", []string{"\n"}, "d   |\n"},
		{"no end", []string{"a\nb"}, "d   | a\nd   | b\n"},
		{"spaces stay", []string{" a \n"}, "d   |  a \n"},
		{"escapes", []string{"\x1b[2Jx\x07\n"}, "d   | \uFFFD[2Jx\uFFFD\n"},
		{"carriage returns", []string{"10%\r20%\r\n"}, "d   | 10%\uFFFD20%\n"},
		{"not UTF-8", []string{"\xff\n"}, "d   | \uFFFD\n"},
		{"a line too long", []string{strings.Repeat("x", maxScreenLine+1) + "\n"}, "d   | " + strings.Repeat("x", maxScreenLine) + "\nd   | x\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			a := &app{stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
			s := a.newScreen([]string{"d", "dev"}, nil)
			w := &deviceLines{screen: s, device: "d", stream: command.StreamStdout}
			for _, p := range tt.writes {
				if n, err := w.Write([]byte(p)); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
			}
			if err := w.flush(); err != nil {
				t.Fatal(err)
			}
			s.close()
			if out.String() != tt.want || errs.Len() > 0 {
				t.Errorf("got %q and %q, want %q", &out, &errs, tt.want)
			}
		})
	}
}

func TestProgressBar(t *testing.T) {
	for want, got := range map[string]string{
		"[>                       ] 0/0":                                progressBar(0, 0, 0, nil),
		"[============>           ] 5/10  3 ok, 2 offline  4 under way": progressBar(5, 10, 4, []string{"3 ok", "2 offline"}),
		"[========================] 10/10  10 ok":                       progressBar(10, 10, 0, []string{"10 ok"}),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestTallyOfDevices(t *testing.T) {
	tl := newTally()
	for _, add := range []struct {
		outcome command.Outcome
		exit    int
		not     bool
		code    int
		sum     string
	}{
		{command.OutcomeOK, 0, false, 0, "1 device: 1 ok"},
		{command.OutcomeFailed, 0, true, 1, "2 devices: 1 ok, 1 not started"},
		{command.OutcomeOK, 200, false, 1, "3 devices: 1 ok, 1 exit 200, 1 not started"},
		{command.OutcomeBusy, 0, false, 6, "4 devices: 1 ok, 1 exit 200, 1 busy, 1 not started"},
		{command.OutcomeOffline, 0, false, 6, "5 devices: 1 ok, 1 exit 200, 1 busy, 1 offline, 1 not started"},
	} {
		tl.add(add.outcome, add.exit, add.not)
		if tl.code() != add.code || tl.String() != add.sum {
			t.Errorf("%d, %q; want %d, %q", tl.code(), tl, add.code, add.sum)
		}
	}
}

func testSpec() jobSpec {
	return jobSpec{
		Schema: 1, ID: command.NewJobID(time.Now()), Secret: command.NewSessionID(), UID: command.UID("ops"), Server: "nats://x", Selection: "--all",
		Devices: []string{"a", "b"}, Program: jobProgram{Argv: []string{"true"}, Window: 1 << 18}, Concurrency: 64,
	}
}

func TestJobFilesOfOldJobsGo(t *testing.T) {
	store := jobStore{t.TempDir()}
	old := testSpec()
	old.ID = command.NewJobID(time.Now().Add(-jobsKept - time.Hour))
	fresh := testSpec()
	for _, spec := range []jobSpec{old, fresh} {
		r, err := store.create(spec)
		if err != nil {
			t.Fatal(err)
		}
		// One process runs a job.
		if _, err := store.open(spec.ID); outcomeOf(err) != command.OutcomeRejected {
			t.Errorf("opened twice: %v", err)
		}
		code := 3
		if err := r.note(jobEnd{DeviceID: "a", Outcome: command.OutcomeOK, ExitCode: &code}); err != nil {
			t.Fatal(err)
		}
		r.close()
	}
	specs, err := store.list()
	if err != nil || len(specs) != 1 || specs[0].ID != fresh.ID {
		t.Errorf("%v, %v", specs, err)
	}
	r, err := store.open(fresh.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if e := r.ended["a"]; !e.final() || e.code() != 3 || len(r.ended) != 1 {
		t.Errorf("%+v", r.ended)
	}
}

func FuzzDecodeJobSpec(f *testing.F) {
	good, err := json.Marshal(testSpec())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"schema":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var any jobSpec
		_ = json.Unmarshal(data, &any)
		spec, err := decodeJobSpec(any.ID, data)
		if err == nil && (command.CheckJobID(spec.ID) != nil || command.CheckSessionID(spec.Secret) != nil || len(spec.Program.Argv) == 0) {
			t.Fatalf("%+v", spec)
		}
	})
}

func FuzzReadJobLog(f *testing.F) {
	f.Add([]byte(`{"device_id":"a","outcome":"ok","exit_code":3}` + "\n{torn"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ends, _ := readJobLog(bytes.NewReader(data))
		for d, e := range ends {
			if !isDeviceID(d) || e.DeviceID != d || !e.Outcome.Known() {
				t.Fatalf("%q: %+v", d, e)
			}
		}
	})
}
