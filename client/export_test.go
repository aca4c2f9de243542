package client

import "time"

func init() {
	lookupTimeout, lookupAllTimeout = time.Minute, time.Minute
}

// SetStreamTimes shrinks the times of streams until what it gives is called.
func SetStreamTimes(alive, silent time.Duration) (restore func()) {
	a, b, c := keepalive, silence, askAgain
	keepalive, silence, askAgain = alive, silent, alive
	return func() { keepalive, silence, askAgain = a, b, c }
}
