package brokertime

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic reads CLOCK_BOOTTIME, which unlike the runtime's clock goes on while
// the machine is suspended (clock_gettime(2)).
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return sinceStart()
	}
	return time.Duration(ts.Nano())
}

var start = time.Now()

func sinceStart() time.Duration { return time.Since(start) }
