package e2e

import (
	"os/exec"
	"runtime"
	"syscall"
)

func hostAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// startLocked starts a process that is to end when this one does. The kernel takes
// the end of the thread that started it for that, so the thread must not end: one to
// which a goroutine is locked would.
func startLocked(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Start()
}
