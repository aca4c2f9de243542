package childproc

import (
	"os/exec"
	"runtime"
	"testing"
	"time"
)

// The kernel takes the end of the thread that started a process for the end of its
// parent. Threads end while a program runs, of those that have changed namespaces for
// example: a process must not end with one of them.
func TestAProcessOutlivesTheThreadThatAskedForIt(t *testing.T) {
	type result struct {
		p   *Process
		err error
	}
	started := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		p, err := Start(exec.Command("sleep", "0.3"))
		started <- result{p, err}
	}()
	r := <-started
	if r.err != nil {
		t.Fatal(r.err)
	}
	if err := r.p.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestKillEndsAProcessAndMayComeTwice(t *testing.T) {
	p, err := Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	p.Kill()
	select {
	case <-p.Ended():
	case <-time.After(10 * time.Second):
		t.Fatal("Kill came back before the end")
	}
	if p.Wait() == nil {
		t.Error("a killed process ended well")
	}
}

func TestWhatCannotBeStartedIsAnError(t *testing.T) {
	if p, err := Start(exec.Command("/nonexistent")); err == nil {
		t.Errorf("started %v", p)
	}
}
