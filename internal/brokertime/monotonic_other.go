//go:build !linux

package brokertime

import "time"

var start = time.Now()

// monotonic does not count suspend here: a machine that slept must sync again.
func monotonic() time.Duration { return time.Since(start) }
