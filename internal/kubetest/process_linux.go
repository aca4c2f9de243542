package kubetest

import (
	"os/exec"
	"syscall"
)

// endWithParent has the kernel kill the process when the test is killed.
func endWithParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
