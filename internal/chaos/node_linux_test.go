package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/broker"
)

// childVariable makes this test binary a broker.
const childVariable = "FLEET_CHAOS_BROKER"

// nodeOptions are what the broker's process is told on its standard input.
type nodeOptions struct {
	Broker broker.Config
	// Address is given to the interface "eth" of a network namespace
	// of its own, which the parent puts there; empty: the parent's network.
	Address string
}

// node is a broker in a process of its own.
type node struct {
	t    *testing.T
	opts nodeOptions
	// attach puts the process on the network; nil: it is the parent's.
	attach func(pid int) error

	cmd   *exec.Cmd
	alive io.Closer // the end of its standard input ends it
	addr  string
}

// startNode runs a broker until the test ends. After a kill, start runs it again:
// on the same port, with the same files.
func startNode(t *testing.T, opts nodeOptions, attach func(pid int) error) *node {
	t.Helper()
	n := &node{t: t, opts: opts, attach: attach}
	t.Cleanup(n.kill)
	n.start()
	return n
}

func (n *node) start() {
	n.t.Helper()
	input, err := json.Marshal(n.opts)
	if err != nil {
		n.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if n.attach != nil {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.cmd, n.alive = cmd, stdin
	if n.attach != nil {
		if err := n.attach(cmd.Process.Pid); err != nil {
			n.t.Fatal(err)
		}
	}
	if _, err := stdin.Write(append(input, '\n')); err != nil {
		n.t.Fatal(err)
	}
	limit := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	limit.Stop()
	if err != nil {
		n.t.Fatalf("the broker %s did not start: %v; its error output says why", n.opts.Broker.ServerName, err)
	}
	n.addr = strings.TrimSpace(line)
	_, port, err := net.SplitHostPort(n.addr)
	if err == nil {
		_, err = fmt.Sscan(port, &n.opts.Broker.Port)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// kill ends the process as a power cut would, and waits for it.
func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait() // says that it was killed
	_ = n.alive.Close()
	n.cmd = nil
}

// inside runs a program in the broker's network.
func (n *node) inside(argv ...string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(n.cmd.Process.Pid), "-n", "--"}, argv...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("%v in the network of %s: %v\n%s", argv, n.opts.Broker.ServerName, err, out)
	}
}

// brokerMain is the process of a broker: it tells its address and runs until its
// standard input ends.
func brokerMain() int {
	if err := runBroker(bufio.NewReader(os.Stdin)); err != nil {
		fmt.Fprintln(os.Stderr, "broker:", err)
		return 1
	}
	return 0
}

func runBroker(in *bufio.Reader) error {
	text, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var opts nodeOptions
	if err := json.Unmarshal(text, &opts); err != nil {
		return err
	}
	if opts.Address != "" {
		if err := configure(opts.Address); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	srv, err := broker.Start(context.Background(), opts.Broker)
	if err != nil {
		return err
	}
	defer srv.Close()
	fmt.Println(srv.Addr())
	_, err = io.Copy(io.Discard, in)
	return err
}
