//go:build linux

package stack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// upWithHosts is a system whose devices run programs on the host, and which have
// all reported.
func upWithHosts(t *testing.T, auth Auth, n int) *Stack {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := up(t, Options{Devices: n, Auth: auth, Policy: workload.Policy{Host: true, HostUser: me.Username}})
	awaitReports(t, s, n)
	return s
}

func awaitReports(t *testing.T, s *Stack, n int) {
	t.Helper()
	testwait.For(t, 3*patience, "the status of every device", func() bool {
		list, err := s.Client().Devices(t.Context(), nil)
		with := 0
		for _, d := range list {
			if d.Status != nil {
				with++
			}
		}
		return err == nil && with >= n
	})
}

// outputs keeps what each device wrote.
type outputs struct {
	mu  sync.Mutex
	out map[string]*bytes.Buffer
	err map[string]*bytes.Buffer
}

func newOutputs() *outputs {
	return &outputs{out: map[string]*bytes.Buffer{}, err: map[string]*bytes.Buffer{}}
}

func (o *outputs) of(device string) (stdout, stderr io.Writer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.out[device], o.err[device] = &bytes.Buffer{}, &bytes.Buffer{}
	return o.out[device], o.err[device]
}

func sh(script string) client.ExecOptions {
	return client.ExecOptions{Host: true, Argv: []string{"sh", "-c", script}}
}

// runAll runs a job to its end and gives the one result of each device.
func runAll(ctx context.Context, t *testing.T, c *client.Client, devices []string, o client.ExecOptions, f client.FanOut) map[string]client.ExecAllResult {
	t.Helper()
	all := map[string]client.ExecAllResult{}
	for r := range c.ExecAll(ctx, devices, o, f) {
		if _, twice := all[r.Device]; twice {
			t.Errorf("%s ended twice", r.Device)
		}
		all[r.Device] = r
	}
	for _, d := range devices {
		if _, ok := all[d]; !ok {
			t.Errorf("%s has no result", d)
		}
	}
	return all
}

func newJob(t *testing.T, c *client.Client) client.Job {
	t.Helper()
	job, err := c.NewJob(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// jobResults reads what the broker keeps of a job until n devices have a result.
func jobResults(t *testing.T, c *client.Client, job client.Job, n int) map[string]command.JobResult {
	t.Helper()
	var all map[string]command.JobResult
	testwait.For(t, patience, fmt.Sprintf("%d results of the job", n), func() bool {
		all = map[string]command.JobResult{}
		for r, err := range c.JobResults(t.Context(), job.ID) {
			if err != nil {
				t.Fatal(err)
			}
			all[r.DeviceID] = r
		}
		return len(all) >= n
	})
	return all
}

func TestProgramOnManyDevices(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := upWithHosts(t, auth, 5)
		must(t, s.StopAgent("vm-device-04"))
		c := s.Client()
		devices := append(s.DeviceIDs(), "vm-device-none", "not a device id", "vm-device-00")
		job, out := newJob(t, c), newOutputs()
		o := sh(`echo "out $$"; echo "err" >&2; exit 3`)
		o.Job, o.Output = job, out.of
		all := runAll(t.Context(), t, c, devices, o, client.FanOut{})
		for _, d := range devices[:4] {
			r := all[d]
			if r.Err != nil || r.ExitCode != 3 || r.Outcome() != command.OutcomeOK || r.OK() || r.RequestID != command.JobRequestID(job.ID, d) || r.Resumed {
				t.Errorf("%s: %+v", d, r)
			}
			if got := out.out[d].String(); !strings.HasPrefix(got, "out ") || out.err[d].String() != "err\n" || r.Bytes.Stdout != int64(len(got)) || r.Bytes.Stderr != 4 {
				t.Errorf("%s wrote %q and %q, %+v", d, got, out.err[d], r.Bytes)
			}
		}
		for d, want := range map[string]command.Outcome{
			"vm-device-04": command.OutcomeOffline, "vm-device-none": command.OutcomeUnknownDevice, "not a device id": command.OutcomeRejected,
		} {
			if all[d].Outcome() != want {
				t.Errorf("%s: %s, want %s: %v", d, all[d].Outcome(), want, all[d].Err)
			}
		}
		if len(all) != 7 {
			t.Errorf("%d results", len(all))
		}
		stored := jobResults(t, c, job, 4)
		for _, d := range devices[:4] {
			if r := stored[d]; r.Outcome != command.OutcomeOK || r.ExitCode == nil || *r.ExitCode != 3 || r.Bytes == nil || *r.Bytes != all[d].Bytes || r.DurationUS <= 0 {
				t.Errorf("stored of %s: %+v", d, r)
			}
		}
		// The same job again runs nothing, and gives the same.
		o.Output = newOutputs().of
		for d, r := range runAll(t.Context(), t, c, devices[:4], o, client.FanOut{}) {
			if r.Err != nil || r.ExitCode != 3 || !r.Resumed {
				t.Errorf("again, %s: %+v", d, r)
			}
		}
		// With other options it is another program, which the job does not run.
		o = sh("true")
		o.Job = job
		for d, r := range runAll(t.Context(), t, c, devices[:4], o, client.FanOut{}) {
			if r.Outcome() != command.OutcomeRejected {
				t.Errorf("another program, %s: %+v", d, r)
			}
		}
		if again := jobResults(t, c, job, 4); *again["vm-device-00"].ExitCode != 3 {
			t.Errorf("the result became %+v", again["vm-device-00"])
		}
	})
}

// The number at a time holds, and all of 200 devices run.
func TestProgramOnTwoHundredDevices(t *testing.T) {
	const n, window = 200, 16
	s := upWithHosts(t, Callout, n)
	dir := t.TempDir()
	job := newJob(t, s.Client())
	// Each program leaves a file while it runs, and notes how many it sees.
	o := sh(`mktemp -q "$0/run.XXXXXX" >"$0/mine.$$" && ls "$0" | grep -c '^run\.' && rm "$(cat "$0/mine.$$")" "$0/mine.$$" && echo ran >>"$0/ran"`)
	o.Argv = append(o.Argv, dir)
	out := newOutputs()
	o.Job, o.Output = job, out.of
	all := runAll(t.Context(), t, s.Client(), s.DeviceIDs(), o, client.FanOut{Window: window})
	for d, r := range all {
		if !r.OK() {
			t.Errorf("%s: %+v", d, r)
		}
		var seen int
		if _, err := fmt.Sscan(out.out[d].String(), &seen); err != nil || seen > window {
			t.Errorf("%s saw %q running at a time: %v", d, out.out[d], err)
		}
	}
	if ran := lines(filepath.Join(dir, "ran")); ran != n {
		t.Errorf("%d ran", ran)
	}
	if stored := jobResults(t, s.Client(), job, n); len(stored) != n {
		t.Errorf("%d results are stored", len(stored))
	}
}

func TestFanOutIsAborted(t *testing.T) {
	s := upWithHosts(t, UserPass, 10)
	for _, tt := range []struct {
		name       string
		script     string
		abort      *client.Abort
		notStarted int
	}{
		{"never", "exit 1", nil, 0},
		{"all are well", "true", &client.Abort{}, 0},
		{"the first is one too many", "exit 1", &client.Abort{}, 9},
		{"not before so many have ended", "exit 1", &client.Abort{Share: 0.1, Min: 4}, 6},
		{"not more than the share", "exit 1", &client.Abort{Share: 1}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			not := 0
			for _, r := range runAll(t.Context(), t, s.Client(), s.DeviceIDs(), sh(tt.script), client.FanOut{Window: 1, Abort: tt.abort}) {
				if r.NotStarted() {
					not++
				} else if r.Err != nil {
					t.Errorf("%+v", r)
				}
			}
			if not != tt.notStarted {
				t.Errorf("%d were not asked, want %d", not, tt.notStarted)
			}
		})
	}
}

func TestFanOutKeepsItsRate(t *testing.T) {
	s := upWithHosts(t, UserPass, 6)
	const rate = 20.0
	for name, run := range map[string]func() int{
		"exec": func() int {
			return len(runAll(t.Context(), t, s.Client(), s.DeviceIDs(), sh("true"), client.FanOut{Rate: rate}))
		},
		"ping": func() int {
			n := 0
			for r := range s.Client().PingAll(t.Context(), s.DeviceIDs(), client.FanOut{Rate: rate}) {
				if r.Err != nil {
					t.Error(r.Err)
				}
				n++
			}
			return n
		},
	} {
		begin := time.Now()
		if n := run(); n != 6 {
			t.Errorf("%s: %d results", name, n)
		}
		if took, least := time.Since(begin), 5*time.Second/rate; took < least-50*time.Millisecond {
			t.Errorf("%s: 6 devices at %v a second took %v", name, rate, took)
		}
	}
}

// Stopped, a fan-out asks nobody else and what runs ends by itself; the same job
// goes on later with those that were not asked.
func TestFanOutIsStoppedAndGoesOn(t *testing.T) {
	s := upWithHosts(t, UserPass, 6)
	dir := t.TempDir()
	o := sh(`echo ran >>"$0/$1"; until [ -e "$0/go" ]; do sleep 0.02; done; exit 4`)
	o.Argv = append(o.Argv, dir, "ran")
	o.Job = newJob(t, s.Client())
	stop, ended := make(chan struct{}), make(chan map[string]client.ExecAllResult, 1)
	go func() {
		ended <- runAll(t.Context(), t, s.Client(), s.DeviceIDs(), o, client.FanOut{Window: 2, Stop: stop})
	}()
	awaitLines(t, filepath.Join(dir, "ran"), 2)
	close(stop)
	must(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	all := <-ended
	var rest []string
	for d, r := range all {
		switch {
		case r.NotStarted():
			rest = append(rest, d)
		case r.Err != nil || r.ExitCode != 4:
			t.Errorf("%+v", r)
		}
	}
	if len(rest) != 4 {
		t.Fatalf("%d were not asked: %v", len(rest), rest)
	}
	for d, r := range runAll(t.Context(), t, s.Client(), s.DeviceIDs(), o, client.FanOut{}) {
		if r.Err != nil || r.ExitCode != 4 {
			t.Errorf("%s: %+v", d, r)
		}
	}
	if ran := lines(filepath.Join(dir, "ran")); ran != 6 {
		t.Errorf("%d ran", ran)
	}
}

// lines counts the lines of a file; 0 where there is none.
func lines(path string) int {
	data, _ := os.ReadFile(path)
	return strings.Count(string(data), "\n")
}

func awaitLines(t *testing.T, path string, n int) {
	t.Helper()
	testwait.For(t, patience, fmt.Sprintf("%d lines in %s", n, path), func() bool { return lines(path) >= n })
}

// A second run of a job, in place of one that is gone, takes up the programs that
// still run: their output goes on, and they are not started again.
func TestJobTakesUpWhatRuns(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := upWithHosts(t, auth, 2)
		dir := t.TempDir()
		o := sh(`echo begin; echo ran >>"$0/ran"; until [ -e "$0/go" ]; do sleep 0.02; done; echo end; exit 5`)
		o.Argv = append(o.Argv, dir)
		first := s.caller(t, auth)
		o.Job = newJob(t, first.c)
		begun := newOutputs()
		o.Output = begun.of
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			for range first.c.ExecAll(context.Background(), s.DeviceIDs(), o, client.FanOut{}) {
			}
		}()
		awaitLines(t, filepath.Join(dir, "ran"), 2)
		// Gone like a process that is killed: without a word.
		first.nc.Close()
		out := newOutputs()
		o.Output = out.of
		second := s.caller(t, auth, first)
		results := make(chan map[string]client.ExecAllResult, 1)
		go func() { results <- runAll(t.Context(), t, second.c, s.DeviceIDs(), o, client.FanOut{}) }()
		testwait.For(t, patience, "the second run", func() bool {
			out.mu.Lock()
			defer out.mu.Unlock()
			return len(out.out) == 2
		})
		must(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
		for d, r := range <-results {
			if r.Err != nil || r.ExitCode != 5 || !r.Resumed || !strings.HasSuffix(out.out[d].String(), "end\n") {
				t.Errorf("%s: %+v wrote %q", d, r, out.out[d])
			}
		}
		if ran := lines(filepath.Join(dir, "ran")); ran != 2 {
			t.Errorf("%d ran", ran)
		}
		first.c.Close()
		<-gone
	})
}

// caller is somebody with a connection of his own.
type caller struct {
	nc *nats.Conn
	c  *client.Client
	id Identity
}

// caller connects somebody who may exec; with another caller, the same person.
func (s *Stack) caller(t *testing.T, auth Auth, same ...*caller) *caller {
	t.Helper()
	p := &caller{}
	var opts []nats.Option
	if auth == UserPass {
		u, password := s.UserPassword(access.Ops)
		opts = append(opts, nats.UserInfo(u, password), nats.CustomInboxPrefix(s.InboxPrefix()))
	} else {
		if len(same) > 0 {
			p.id = same[0].id
		} else {
			var err error
			p.id, err = s.NewIdentity(time.Hour, access.RoleOps)
			must(t, err)
		}
		opts = append(opts, nats.Token(p.id.Token), nats.CustomInboxPrefix(p.id.InboxPrefix))
	}
	var err error
	p.nc, err = nats.Connect(s.NATSURL(), opts...)
	must(t, err)
	t.Cleanup(p.nc.Close)
	p.c, err = client.New(p.nc, client.Options{})
	must(t, err)
	t.Cleanup(func() { p.c.Close() })
	return p
}

// A device that goes away while the program runs has one outcome, at once, and
// asked again it does not run the program a second time.
func TestDeviceGoesAwayDuringAJob(t *testing.T) {
	s := upWithHosts(t, UserPass, 3)
	dir := t.TempDir()
	ran := filepath.Join(dir, "ran")
	o := sh(`echo ran >>"$0/ran"; until [ -e "$0/go" ]; do sleep 0.02; done`)
	o.Argv = append(o.Argv, dir)
	o.Job = newJob(t, s.Client())
	ended := make(chan map[string]client.ExecAllResult, 1)
	go func() { ended <- runAll(t.Context(), t, s.Client(), s.DeviceIDs(), o, client.FanOut{}) }()
	awaitLines(t, ran, 3)
	must(t, s.StopAgent("vm-device-01"))
	must(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	all := <-ended
	if r := all["vm-device-01"]; r.Err == nil || !all["vm-device-00"].OK() || !all["vm-device-02"].OK() {
		t.Errorf("%+v", all)
	}
	must(t, s.AddAgent(t.Context(), "vm-device-01", "vm-device-01"))
	pings(t, s.Client(), "vm-device-01")
	testwait.For(t, patience, "what became of it", func() bool {
		r := runAll(t.Context(), t, s.Client(), []string{"vm-device-01"}, o, client.FanOut{})["vm-device-01"]
		return r.Err != nil && r.Err.Kind == "" && r.Outcome() == all["vm-device-01"].Outcome()
	})
	if n := lines(ran); n != 3 {
		t.Errorf("%d ran on 3 devices", n)
	}
}

// A broker that restarts in the middle of a job does not end it.
func TestBrokerRestartsDuringAJob(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		const n = 6
		s := upWithHosts(t, auth, n)
		dir := t.TempDir()
		ran := filepath.Join(dir, "ran")
		o := sh(`echo begin; echo ran >>"$0/ran"; until [ -e "$0/go" ]; do sleep 0.02; done; echo end`)
		o.Argv = append(o.Argv, dir)
		o.Job = newJob(t, s.Client())
		out := newOutputs()
		o.Output = out.of
		ended := make(chan map[string]client.ExecAllResult, 1)
		go func() {
			ended <- runAll(t.Context(), t, s.Client(), s.DeviceIDs(), o, client.FanOut{Window: n / 2, Timeout: patience})
		}()
		awaitLines(t, ran, n/2)
		s.StopBroker()
		must(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
		must(t, s.StartBroker(t.Context()))
		whole := 0
		for d, r := range <-ended {
			switch {
			case r.OK() && out.out[d].String() == "begin\nend\n":
				whole++
			case r.Outcome() == command.OutcomeOffline: // its agent was not back yet
			default:
				t.Errorf("%s: %+v wrote %q", d, r, out.out[d])
			}
		}
		if whole < n/2 {
			t.Errorf("%d of %d programs that ran through the restart came back whole", whole, n/2)
		}
		if got := lines(ran); got != whole {
			t.Errorf("%d ran, %d are known", got, whole)
		}
	})
}
