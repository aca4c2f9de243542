package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/stack"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// hosts is a fleet whose devices run programs on the host, and a user of it.
func hosts(t *testing.T, auth stack.Auth, n int) (*home, *stack.Stack) {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := binary(); err != nil { // takes longer than a command may
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	s, err := stack.Start(ctx, stack.Options{
		Devices: n, Auth: auth, Port: stack.AnyPort, Policy: workload.Policy{Host: true, HostUser: me.Username},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	testwait.For(t, patience, "the status of every device", func() bool {
		list, err := s.Client().Devices(t.Context(), nil)
		with := 0
		for _, d := range list {
			if d.Status != nil {
				with++
			}
		}
		return err == nil && with == n
	})
	h := newHome(t)
	h.env = append(h.env, "FLEET_SERVER="+s.NATSURL())
	if auth == stack.UserPass {
		u, password := s.UserPassword(access.Ops)
		h.env = append(h.env, "FLEET_USER="+u, "FLEET_PASSWORD="+password)
	} else {
		h.env = append(h.env, "FLEET_TOKEN="+s.AdminToken())
	}
	return h, s
}

var jobIDForm = regexp.MustCompile(`job ([0-9a-f-]{36})`)

// jobOf is the job that an output names.
func jobOf(t *testing.T, stderr string) string {
	t.Helper()
	found := jobIDForm.FindStringSubmatch(stderr)
	if found == nil {
		t.Fatalf("no job in %q", stderr)
	}
	return found[1]
}

func linesOf(path string) int {
	data, _ := os.ReadFile(path)
	return strings.Count(string(data), "\n")
}

func TestExecOnManyDevices(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth string) {
		h, s := hosts(t, stack.Auth(auth), 3)
		if err := s.StopAgent("vm-device-02"); err != nil {
			t.Fatal(err)
		}
		// What a device writes comes as whole lines behind its id, without what could
		// rewrite a terminal.
		o := h.fleet("exec", "--all", "--host", "--", "sh", "-c", `printf 'a\tb\r\n\nlast\033[2J'; printf '\342\200\256err' >&2; exit 3`)
		for _, d := range []string{"vm-device-00", "vm-device-01"} {
			var out []string
			for line := range strings.Lines(o.stdout) {
				if strings.HasPrefix(line, d) {
					out = append(out, line)
				}
			}
			if want := []string{d + " | a\tb\n", d + " |\n", d + " | last\uFFFD[2J\n"}; fmt.Sprint(out) != fmt.Sprint(want) {
				t.Errorf("%s: %q, want %q", d, out, want)
			}
			for _, want := range []string{d + " | \uFFFDerr\n", "fleet: exec " + d + ": exit code 3\n"} {
				if !strings.Contains(o.stderr, want) {
					t.Errorf("no %q in %q", want, o.stderr)
				}
			}
		}
		job := jobOf(t, o.stderr)
		if o.code != 3 || strings.ContainsRune(o.stdout+o.stderr, 0x1b) || !strings.Contains(o.stderr, "exec vm-device-02: offline: ") ||
			!strings.HasSuffix(o.stderr, "fleet: job "+job+": 3 devices: 2 exit 3, 1 offline\n") {
			t.Errorf("%s", o)
		}
		// It can be looked at, and gone on with once the device is back.
		shown := h.fleet("job", "show", job)
		if shown.code != 3 || !regexp.MustCompile(`(?m)^vm-device-00 +ok +3 +\S+ +-$`).MatchString(shown.stdout) || !regexp.MustCompile(`(?m)^vm-device-02 +offline +- +- +the device is not connected`).MatchString(shown.stdout) ||
			shown.stderr != "fleet: 3 devices: 2 exit 3, 1 offline\n" {
			t.Errorf("%s", shown)
		}
		if list := h.fleet("job", "list"); list.code != 0 || !strings.Contains(list.stdout, job) || !strings.Contains(list.stdout, "1 open") {
			t.Errorf("%s", list)
		}
		if err := s.AddAgent(t.Context(), "vm-device-02", "vm-device-02"); err != nil {
			t.Fatal(err)
		}
		testwait.For(t, patience, "the device", func() bool { return h.fleet("ping", "vm-device-02").code == 0 })
		resumed := h.fleet("job", "resume", job)
		if resumed.code != 1 || !strings.HasPrefix(resumed.stderr, "fleet: job "+job+" on 3 devices, of which 2 are done\n") ||
			!strings.HasSuffix(resumed.stderr, "3 devices: 3 exit 3\n") || strings.Contains(resumed.stdout, "vm-device-00") {
			t.Errorf("%s", resumed)
		}
		if list := h.fleet("job", "list"); !strings.Contains(list.stdout, "done") {
			t.Errorf("%s", list)
		}
		for _, suffix := range []string{".json", ".log"} {
			if info, err := os.Stat(filepath.Join(h.dir, "state", "harmony-fleet", "jobs", job+suffix)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
		}
	})
}

func TestExecOnManyDevicesAsJSON(t *testing.T) {
	h, _ := hosts(t, stack.UserPass, 2)
	o := h.fleet("exec", "vm-device-00", "vm-device-01", "vm-device-none", "-o", "json", "--host", "--", "sh", "-c", "echo out; echo err >&2; exit 0")
	if o.code != 3 || o.stderr != "" || strings.Count(o.stdout, "\n") != 3 {
		t.Fatalf("%s", o)
	}
	for line := range strings.Lines(o.stdout) {
		var got jobLine
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		switch got.DeviceID {
		case "vm-device-none":
			if got.Outcome != command.OutcomeUnknownDevice || got.Message == "" || got.Reply != nil {
				t.Errorf("%s", line)
			}
		default:
			if got.Outcome != command.OutcomeOK || got.Reply == nil || string(got.Reply.Stdout) != "out\n" || string(got.Reply.Stderr) != "err\n" ||
				got.RequestID != command.JobRequestID(got.Job, got.DeviceID) || got.Duration == nil {
				t.Errorf("%s", line)
			}
		}
	}
}

func TestCommandLineOfFanOut(t *testing.T) {
	h, _ := hosts(t, stack.UserPass, 2)
	for _, c := range []struct {
		args []string
		code int
		says string // on stderr
	}{
		{[]string{"exec", "--", "true"}, 255, "say on which device"},
		{[]string{"exec", "--all", "--host"}, 2, "say on which device"},
		{[]string{"exec", "--all", "vm-device-00", "--", "true"}, 2, "say which devices"},
		{[]string{"exec", "--all", "-i", "--", "true"}, 2, "-i and -t are for one device"},
		{[]string{"exec", "--all", "--concurrency", "0", "--", "true"}, 2, "--concurrency is 0"},
		{[]string{"exec", "--all", "--rate", "-1", "--", "true"}, 2, "--rate is -1"},
		{[]string{"exec", "--all", "--abort-after", "0.1", "--", "true"}, 2, "say a percentage"},
		{[]string{"exec", "--all", "--abort-min", "-1", "--", "true"}, 2, "--abort-min is negative"},
		{[]string{"exec", "-l", "site=none", "--host", "--", "true"}, 3, "no device has these labels"},
		{[]string{"exec", "vm-device-00", "--rate", "3", "--host", "--", "true"}, 255, "--rate: for several devices"},
		{[]string{"exec", "--all", "--host", "--", "true"}, 0, "2 devices: 2 ok"},
		{[]string{"exec", "--all", "--host", "true"}, 0, "2 devices: 2 ok"},
		{[]string{"exec", "--all", "--", "true"}, 1, "2 devices: 2 failed"},
		{[]string{"exec", "--all", "--host", "--concurrency", "1", "--abort-after", "0%", "--abort-min", "0", "--", "false"}, 1, "2 devices: 1 exit 1, 1 not started"},
		{[]string{"ping", "--all", "--rate", "1000", "--concurrency", "1"}, 0, ""},
		{[]string{"ping", "--all", "--abort-after", "x"}, 2, "say a percentage"},
		{[]string{"ping", "vm-device-98", "vm-device-99", "--concurrency", "1", "--abort-after", "0%", "--abort-min", "1"}, 3, "2 devices: 1 unknown_device, 1 not started"},
		{[]string{"job", "show", "x"}, 2, "job id"},
		{[]string{"job", "show", "01890a5d-ac96-774b-bcce-b302099a8057"}, 2, "nothing is stored"},
		{[]string{"job", "resume", "01890a5d-ac96-774b-bcce-b302099a8057"}, 2, "was begun here"},
		{[]string{"job", "nope"}, 2, "say list, show JOB or resume JOB"},
	} {
		if o := h.fleet(c.args...); o.code != c.code || !strings.Contains(o.stderr, c.says) {
			t.Errorf("%v: want %d and %q: %s", c.args, c.code, c.says, o)
		}
	}
}

// A job whose process is killed goes on: every device ran the program once,
// whatever it was at, and everybody has one result.
func TestJobSurvivesKill(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth string) {
		const n = 12
		h, _ := hosts(t, stack.Auth(auth), n)
		dir := t.TempDir()
		ran, goOn := filepath.Join(dir, "ran"), filepath.Join(dir, "go")
		// The first three end at once, the others wait until they may.
		script := fmt.Sprintf(`echo ran >>%s; cd %s; for i in 1 2 3; do mkdir $i 2>/dev/null && exit 0; done; until [ -e %s ]; do sleep 0.02; done; exit 7`, ran, dir, goOn)
		p := h.start("exec", "--all", "--host", "--concurrency", "4", "--", "sh", "-c", script)
		testwait.For(t, patience, "three that ended and four at work", func() bool { return linesOf(ran) == 7 })
		if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-p.ended
		job := jobOf(t, p.stderr.String())
		if err := os.WriteFile(goOn, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		o := h.fleet("job", "resume", job)
		if !strings.HasSuffix(o.stderr, fmt.Sprintf("%d devices: 3 ok, 9 exit 7\n", n)) || o.code != 1 {
			t.Errorf("%s", o)
		}
		if got := linesOf(ran); got != n {
			t.Errorf("%d programs ran on %d devices", got, n)
		}
		// Once more there is nothing to do.
		if o := h.fleet("job", "resume", job); !strings.HasSuffix(o.stderr, fmt.Sprintf("%d devices: 3 ok, 9 exit 7\n", n)) || o.stdout != "" {
			t.Errorf("%s", o)
		}
		if got := linesOf(ran); got != n {
			t.Errorf("%d programs ran after another resume", got)
		}
		if o := h.fleet("job", "show", job, "-o", "json"); strings.Count(o.stdout, `"stored":true`) != n {
			t.Errorf("%s", o)
		}
	})
}

// Ctrl-C asks nobody else, tells what runs, and waits for it.
func TestJobIsInterrupted(t *testing.T) {
	h, _ := hosts(t, stack.UserPass, 4)
	dir := t.TempDir()
	ran, goOn := filepath.Join(dir, "ran"), filepath.Join(dir, "go")
	p := h.start("exec", "--all", "--host", "--concurrency", "2", "--", "sh", "-c", fmt.Sprintf("echo ran >>%s; until [ -e %s ]; do sleep 0.02; done", ran, goOn))
	testwait.For(t, patience, "two at work", func() bool { return linesOf(ran) == 2 })
	testwait.For(t, patience, "word of it", func() bool { return strings.Contains(p.stderr.String(), "on 4 devices") })
	if o := h.fleet("job", "resume", jobOf(t, p.stderr.String())); o.code != 2 || !strings.Contains(o.stderr, "another process") {
		t.Errorf("%s", o)
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, patience, "word of the stop", func() bool {
		return strings.Contains(p.stderr.String(), "no further device is asked; 2 devices still at work: vm-device-0")
	})
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	<-p.ended
	job := jobOf(t, p.stderr.String())
	if code := p.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(p.stderr.String(), "4 devices: 2 ok, 2 not started\nfleet: 2 devices may be asked again: fleet job resume "+job+"\n") {
		t.Errorf("exit code %d: %s", code, &p.stderr)
	}
	if o := h.fleet("job", "resume", job); o.code != 0 || !strings.HasSuffix(o.stderr, "4 devices: 4 ok\n") {
		t.Errorf("%s", o)
	}
	if got := linesOf(ran); got != 4 {
		t.Errorf("%d ran", got)
	}
	// Left at once by a second Ctrl-C.
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Remove(goOn))
	p = h.start("exec", "--all", "--host", "--", "sh", "-c", fmt.Sprintf("echo ran >>%s; until [ -e %s ]; do sleep 0.02; done", ran, goOn))
	testwait.For(t, patience, "all at work", func() bool { return linesOf(ran) == 8 })
	must(p.cmd.Process.Signal(os.Interrupt))
	testwait.For(t, patience, "word of the stop", func() bool { return strings.Contains(p.stderr.String(), "4 devices still at work") })
	begin := time.Now()
	must(p.cmd.Process.Signal(os.Interrupt))
	<-p.ended
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it left after %v", took)
	}
	must(os.WriteFile(goOn, nil, 0o600))
	if o := h.fleet("job", "resume", jobOf(t, p.stderr.String())); o.code != 0 || linesOf(ran) != 8 {
		t.Errorf("%d ran: %s", linesOf(ran), o)
	}
}

func TestProgressBarIsForTerminals(t *testing.T) {
	h, _ := hosts(t, stack.UserPass, 3)
	goOn := filepath.Join(t.TempDir(), "go")
	s := h.sit("exec", "--all", "--host", "--concurrency", "2", "--", "sh", "-c", fmt.Sprintf("echo hello; until [ -e %s ]; do sleep 0.02; done", goOn))
	s.shows("0/3  2 under way")
	s.shows("\x1b[36mvm-device-0") // the id is in colour, and so is told from the output
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.shows("3 devices: 3 ok")
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d: %q", code, s.text())
	}
	// The bar is gone at the end: what is last on the screen is the sum.
	text := s.text()
	if last := text[strings.LastIndex(text, "\x1b[K")+len("\x1b[K"):]; !strings.HasSuffix(last, "3 devices: 3 ok\r\n") || strings.Contains(last, "under way") {
		t.Errorf("the screen ends with %q", last)
	}
}
