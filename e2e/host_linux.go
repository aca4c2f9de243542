package e2e

import "syscall"

// hostAttributes has an agent end when this process does, and not by Ctrl-C, which is
// for this process: it stops the agent then.
func hostAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
