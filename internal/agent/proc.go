package agent

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"time"
)

// resident is the resident memory of the process, read at most once a second:
// many agents may share a process, and each ping asks.
var resident struct {
	sync.Mutex
	read  time.Time
	bytes uint64
}

// residentBytes is 0 where the system does not tell.
func residentBytes() uint64 {
	resident.Lock()
	defer resident.Unlock()
	if now := time.Now(); now.Sub(resident.read) >= time.Second {
		resident.read = now
		resident.bytes = readResident()
	}
	return resident.bytes
}

// readResident reads the second field of /proc/self/statm, in pages (proc(5)).
func readResident() uint64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(data)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// kernelBootID is the id of the machine's boot, empty where the system does not
// tell (random(4)).
func kernelBootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}
