package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/testwait"
)

// helperVariable names what a second run of the test binary does with its stack:
// the ends of a process that a test cannot survive itself.
const helperVariable = "FLEET_E2E_TEST_HELPER"

// helperReady goes before the name of the namespace on the helper's output.
const helperReady = "helper is up in "

// TestHelper is the helper; without the variable it does nothing.
func TestHelper(t *testing.T) {
	part := os.Getenv(helperVariable)
	if part == "" {
		return
	}
	if part == "signal while it comes up" {
		go func() {
			for { // the parent sends the signal when the namespace is there
				live.Lock()
				for s := range live.stacks {
					fmt.Println(helperReady + s.Namespace)
					live.Unlock()
					return
				}
				live.Unlock()
			}
		}()
	}
	s := New(t, Options{AuthMode: UserPass})
	if part != "signal while it comes up" {
		fmt.Println(helperReady + s.Namespace)
	}
	switch part {
	case "fail":
		t.Fatal("the helper fails")
	case "panic":
		panic("the helper panics")
	default: // wait for the signal, or for -timeout
		<-context.Background().Done()
	}
}

// helper is a run of TestHelper.
type helper struct {
	namespace string
	cmd       *exec.Cmd
	output    *strings.Builder // complete once done is closed
	done      chan struct{}
}

func startHelper(t *testing.T, part string, args ...string) *helper {
	t.Helper()
	h := &helper{output: &strings.Builder{}, done: make(chan struct{})}
	h.cmd = exec.Command(os.Args[0], append([]string{"-test.run=^TestHelper$", "-test.v"}, args...)...)
	h.cmd.Env = append(os.Environ(), helperVariable+"="+part, EnvDiagnostics+"="+t.TempDir())
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.cmd.Stderr = h.cmd.Stdout
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		defer close(h.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			fmt.Fprintln(h.output, lines.Text())
			if _, namespace, ok := strings.Cut(lines.Text(), helperReady); ok {
				ready <- strings.TrimSpace(namespace)
			}
		}
		_ = h.cmd.Wait() // how it ends is the test's to judge, by ProcessState
	}()
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill()
		<-h.done
	})
	select {
	case h.namespace = <-ready:
	case <-h.done:
		t.Fatalf("the helper ended early:\n%s", h.output)
	case <-time.After(patience):
		t.Fatal("the helper does not come up")
	}
	return h
}

func (h *helper) wait(t *testing.T) {
	t.Helper()
	select {
	case <-h.done:
	case <-time.After(patience):
		t.Fatal("the helper does not end")
	}
}

func TestStackOfAFailingTestIsTakenDownAndLookedInto(t *testing.T) {
	kube, _ := kubeOf(t)
	h := startHelper(t, "fail")
	h.wait(t)
	wantGone(t, kube, h.namespace, podsGone)
	if !strings.Contains(h.output.String(), "diagnostics are in ") || !strings.Contains(h.output.String(), "--- FAIL: TestHelper") {
		t.Errorf("the helper said:\n%s", h.output)
	}
}

func TestStackOfAPanickingTestIsTakenDown(t *testing.T) {
	kube, _ := kubeOf(t)
	h := startHelper(t, "panic")
	h.wait(t)
	wantGone(t, kube, h.namespace, podsGone)
	if !strings.Contains(h.output.String(), "panic: the helper panics") {
		t.Errorf("the helper said:\n%s", h.output)
	}
}

func TestInterruptTakesTheStackDown(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			kube, _ := kubeOf(t)
			h := startHelper(t, "wait")
			if err := h.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			h.wait(t)
			if status := h.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != sig {
				t.Errorf("the helper ended with %v, not by the signal", h.cmd.ProcessState)
			}
			wantGone(t, kube, h.namespace, podsGone)
		})
	}
}

func TestInterruptDuringTheBringUpLeavesNothing(t *testing.T) {
	kube, _ := kubeOf(t)
	h := startHelper(t, "signal while it comes up")
	testwait.For(t, patience, "the namespace", func() bool { return len(podsOf(t, kube, h.namespace)) > 0 })
	if err := h.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	h.wait(t)
	wantGone(t, kube, h.namespace, podsGone)
}

// What ends a process at once leaves its namespace, and the next run sweeps it.
func TestStackOfAKilledProcessIsSweptByTheNextRun(t *testing.T) {
	kube, _ := kubeOf(t)
	living := New(t, Options{AuthMode: UserPass})
	ended := map[string]*helper{
		"-timeout": startHelper(t, "wait", "-test.timeout=20s"),
		"SIGKILL":  startHelper(t, "wait"),
	}
	if err := ended["SIGKILL"].cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for how, h := range ended {
		h.wait(t)
		if ending(t, kube, h.namespace) {
			t.Fatalf("%s: the namespace ended with the process: there is nothing to sweep", how)
		}
	}
	if said := ended["-timeout"].output.String(); !strings.Contains(said, "panic: test timed out after 20s") {
		t.Errorf("the helper with a time limit said:\n%s", said)
	}
	next := New(t, Options{AuthMode: UserPass})
	for how, h := range ended {
		wantGone(t, kube, h.namespace, podsGone)
		if left, err := filepath.Glob(filepath.Join(os.TempDir(), "*"+h.namespace+"*")); err != nil || len(left) > 0 {
			t.Errorf("%s: files are left: %v, %v", how, left, err)
		}
	}
	pingAll(t, living) // which the sweep left alone
	pingAll(t, next)
}
