//go:build !linux

package e2e

import "syscall"

// hostAttributes has Ctrl-C reach this process only, which stops the agent then.
func hostAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
