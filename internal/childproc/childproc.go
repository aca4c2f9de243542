// Package childproc starts processes that end with this one, however it ends, where
// the system can see to that (Linux).
//
//	p, err := childproc.Start(exec.Command("podman", "system", "service"))
//	defer p.Kill()
package childproc

import (
	"os/exec"
	"runtime"
)

// Process is a process that was started.
type Process struct {
	Cmd   *exec.Cmd
	ended chan struct{}
	err   error // of its end
}

// Start starts cmd and waits for its end in the background; cmd.Wait is not for the
// caller. What cmd.SysProcAttr says beside is kept.
func Start(cmd *exec.Cmd) (*Process, error) {
	endWithParent(cmd)
	p := &Process{Cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(p.ended)
		// The kernel takes the end of the thread that started a process for the end of its
		// parent (prctl(2), PR_SET_PDEATHSIG): this one is nobody else's meanwhile.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		<-p.ended
		return nil, err
	}
	return p, nil
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for the end, and gives what [exec.Cmd.Wait] does.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}

// Kill ends the process, if it has not ended, and waits for that.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // it may have ended by itself
	<-p.ended
}
