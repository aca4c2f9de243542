package engine

import (
	"strings"
	"testing"
)

func TestOnlyTheMonitorOfTheContainerIsOne(t *testing.T) {
	id, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for cmdline, want := range map[string]bool{
		"/usr/bin/conmon\x00--api-version\x001\x00-c\x00" + id + "\x00-u\x00" + id + "\x00": true,
		"conmon\x00-c\x00" + id + "\x00":                  true,
		"conmon\x00-c\x00" + other + "\x00-u\x00" + id:    false,
		"conmon\x00-c\x00" + id[:12] + "\x00":             false,
		"conmon\x00-c":                                    false,
		"-c\x00" + id:                                     false,
		"vi\x00-c\x00" + id + "\x00":                      false,
		"/usr/bin/runc\x00--root\x00/x\x00start\x00" + id: false,
		"": false, // a process of the kernel
	} {
		if got := isMonitor([]byte(cmdline), id); got != want {
			t.Errorf("%q: %v", cmdline, got)
		}
	}
	if isMonitor([]byte("conmon\x00-c\x00\x00"), "") {
		t.Error("no id is that of any container")
	}
}
