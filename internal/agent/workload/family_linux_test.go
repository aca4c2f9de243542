package workload

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const patience = 20 * time.Second

// sleepers are the processes that sleep for so many seconds, which nothing else
// does.
func sleepers(seconds string) (pids []int) {
	for _, p := range processes() {
		line, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/cmdline")
		if err == nil && string(line) == "sleep\x00"+seconds+"\x00" {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// run starts a script as the first process of a session, until the test ends.
func run(t *testing.T, script string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// What leaves its session, once or twice, ends with the program: by the mark also
// where its parent is gone, by its parents also where it has no mark any more.
func TestAProgramThatLeavesItsSessionEndsWithIt(t *testing.T) {
	for name, script := range map[string]string{
		"twice, parents gone":       "setsid -f setsid -f sleep 86400701; exec sleep 86400702",
		"twice, no mark":            "setsid -w env -i setsid -w sleep 86400701 & exec sleep 86400702",
		"once, no mark, and a fork": "setsid -w env -i sh -c 'sleep 86400701; true' & exec sleep 86400702",
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				for _, pid := range append(sleepers("86400701"), sleepers("86400703")...) {
					_ = syscall.Kill(pid, syscall.SIGKILL) // left by a failure
				}
			})
			mark := markOf("d", command.VerbExec, "u", name)
			cmd := run(t, script, markName+"="+mark)
			bystander := run(t, "exec sleep 86400703", markName+"="+markOf("d", command.VerbExec, "u", "another"))
			testwait.For(t, patience, "the programs", func() bool {
				return len(sleepers("86400701")) == 1 && len(sleepers("86400702")) == 1 && len(sleepers("86400703")) == 1
			})
			for _, p := range processes() {
				if p.pid == sleepers("86400701")[0] && p.session == cmd.Process.Pid {
					t.Fatal("it is in the session still")
				}
			}
			l, err := openLeader(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			defer l.close()
			l.killAll(mark)
			testwait.For(t, patience, "both to be gone", func() bool { return len(sleepers("86400701"))+len(sleepers("86400702")) == 0 })
			if len(sleepers("86400703")) != 1 {
				t.Error("another program was killed")
			}
			_ = bystander.Process.Kill()
			testwait.For(t, patience, "the bystander to be gone", func() bool { return len(sleepers("86400703")) == 0 })
		})
	}
}

// hostProgram runs a script as nobody, as exec on the host does.
func hostProgram(t *testing.T, mark, script string) *hostProcess {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can run programs as another user and make cgroups")
	}
	as, err := lookUp("nobody")
	if err != nil {
		t.Fatal(err)
	}
	h, err := startHost(program{argv: []string{"sh", "-c", script}}, as, mark)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Kill()
		<-h.exited
		h.Close()
	})
	return h
}

// Where the agent can make cgroups nothing gets away on the host: not what clears
// its environment, leaves its session twice and loses its parent.
func TestNothingLeavesTheCgroupOfAHostProgram(t *testing.T) {
	const script = "env -i /usr/bin/setsid -f /usr/bin/setsid -f sleep 86400711; exec sleep 86400712"
	h := hostProgram(t, markOf("d", command.VerbExec, "u", "cgroup"), script)
	if h.cgroup == nil {
		if dir, err := ownCgroup(); err == nil {
			t.Fatalf("no cgroup in %s: %v", dir, h.uncontained)
		}
		t.Skipf("no cgroup of version 2 here: %v", h.uncontained)
	}
	testwait.For(t, patience, "the programs", func() bool { return len(sleepers("86400711")) == 1 && len(sleepers("86400712")) == 1 })
	if n := len(newFamily(h.mark).members()); n != 1 {
		t.Fatalf("%d processes can be told by the mark; the test wants the first one alone", n)
	}
	h.Kill()
	testwait.For(t, patience, "both to be gone", func() bool { return len(sleepers("86400711"))+len(sleepers("86400712")) == 0 })
	dir := h.cgroup.dir
	testwait.For(t, patience, "the cgroup to be gone", func() bool {
		h.cgroup.close()
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
}

// A kernel without cgroup.kill freezes and kills.
func TestACgroupIsKilledByHand(t *testing.T) {
	h := hostProgram(t, markOf("d", command.VerbExec, "u", "by hand"), "setsid -f sleep 86400721; exec sleep 86400722")
	if h.cgroup == nil {
		t.Skipf("no cgroup of version 2 here: %v", h.uncontained)
	}
	testwait.For(t, patience, "the programs", func() bool { return len(h.cgroup.pids()) == 2 })
	h.cgroup.killByHand()
	testwait.For(t, patience, "both to be gone", func() bool { return len(sleepers("86400721"))+len(sleepers("86400722")) == 0 })
}

// An agent that was killed leaves programs behind; the next run ends them, and no
// others.
func TestReclaim(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{DeviceID: "d", Policy: Policy{Host: true, HostUser: me.Username}})
	call := Call{Verb: command.VerbExec, Caller: command.AuditCaller{UID: "u"}}
	launch := func(id, seconds string) process {
		c := call
		c.Header.RequestID = id
		start, err := s.prepareHost(c, program{argv: []string{"sh", "-c", "setsid -f sleep " + seconds + "; exec sleep " + seconds}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := start(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			p.Kill()
			_, _ = p.Wait(context.Background())
			p.Close()
		})
		testwait.For(t, patience, "the program", func() bool { return len(sleepers(seconds)) == 2 })
		return p
	}
	launch("lost", "86400731")
	launch("kept", "86400732")
	later := New(Options{DeviceID: "d"})
	if n := later.Reclaim([]Started{{command.VerbExec, "u", "lost"}, {command.VerbShell, "u", "kept"}, {command.VerbExec, "v", "kept"}}); n != 2 {
		t.Errorf("%d processes were ended, want 2", n)
	}
	testwait.For(t, patience, "what was lost to be gone", func() bool { return len(sleepers("86400731")) == 0 })
	if n := len(sleepers("86400732")); n != 2 {
		t.Errorf("%d processes of another request are left, want 2", n)
	}
	if n := later.Reclaim(nil); n != 0 {
		t.Errorf("%d processes of no request were ended", n)
	}
}

func TestCgroupDir(t *testing.T) {
	const v2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	const hybrid = "30 29 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n31 29 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n"
	for name, c := range map[string]struct{ mounts, own, want string }{
		"version 2":          {v2, "0::/system.slice/fleet-agent.service\n", "/sys/fs/cgroup/system.slice/fleet-agent.service"},
		"beside version 1":   {hybrid, "8:pids:/x\n0::/user.slice\n", "/sys/fs/cgroup/unified/user.slice"},
		"at the root":        {hybrid, "8:pids:/x\n0::/\n", "/sys/fs/cgroup/unified"},
		"version 1 alone":    {"30 29 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n", "8:pids:/x\n", ""},
		"v2 is not mounted":  {"30 29 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n", "8:pids:/x\n0::/\n", ""},
		"a part is mounted":  {"29 23 0:26 /a /cg rw - cgroup2 cgroup2 rw\n", "0::/a/b\n", "/cg/b"},
		"another part is":    {"29 23 0:26 /a /cg rw - cgroup2 cgroup2 rw\n", "0::/ab\n", ""},
		"nothing":            {"", "", ""},
		"what is no mount":   {"cgroup2\n - cgroup2\n", "0::/\n", ""},
		"what is no path":    {v2, "0::x\n", ""},
		"of another process": {v2, "0::/../x\n", ""},
	} {
		got, err := cgroupDir(c.mounts, c.own)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("1 (a) b) S 0 1 1"))
	f.Add([]byte(""))
	f.Add([]byte("1 (x) " + strings.Repeat("1 ", 30)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, ok := parseStat(1, raw)
		if ok && (p.pid != 1 || p.start == "") {
			t.Fatalf("%+v", p)
		}
	})
}
