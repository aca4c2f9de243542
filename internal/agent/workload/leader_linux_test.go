package workload

import (
	"bufio"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/internal/testwait"
)

// sessionMembers lists the processes of a session that are not dead.
func sessionMembers(id int) (pids []int) {
	for _, p := range processes() {
		if p.session == id && !p.dead {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// Everything in the session of a program ends with it, whatever process groups
// it made, and also when its first process has ended before.
func TestASessionIsKilledWhole(t *testing.T) {
	for name, script := range map[string]string{
		"it runs":    "set -m; sleep 1000 & sleep 1000 & echo $! ; wait",
		"it is over": "set -m; sleep 1000 & sleep 1000 & echo $!",
	} {
		cmd := exec.Command("bash", "-c", script) // sh makes process groups only on a terminal
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		l, err := openLeader(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		child, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		if group, err := unix.Getpgid(child); err != nil || group == cmd.Process.Pid {
			t.Fatalf("%s: the child's process group is %d, %v", name, group, err)
		}
		if name == "it is over" {
			_ = cmd.Process.Kill()
			_, _ = cmd.Process.Wait()
		}
		if len(sessionMembers(cmd.Process.Pid)) < 2 {
			t.Errorf("%s: members %v", name, sessionMembers(cmd.Process.Pid))
		}
		l.killAll("no such mark")
		testwait.For(t, 10*time.Second, name+": all to be gone", func() bool { return len(sessionMembers(cmd.Process.Pid)) == 0 })
		l.close()
		l.killAll("no such mark") // of one that is closed: nothing
		if err := l.signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	}
}

func TestSignalNames(t *testing.T) {
	for name, want := range map[string]unix.Signal{"TERM": unix.SIGTERM, "SIGINT": unix.SIGINT, "hup": unix.SIGHUP, "": 0, "9": 0, "NOPE": 0} {
		if got, err := signalNamed(name); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
}
