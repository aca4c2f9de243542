package client

import (
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

func init() {
	lookupTimeout, lookupAllTimeout = time.Minute, time.Minute
}

// SetStreamTimes shrinks the times of streams until what it gives is called.
func SetStreamTimes(alive, silent time.Duration) (restore func()) {
	a, b, c := keepalive, silence, askAgain
	keepalive, silence, askAgain = alive, silent, alive
	return func() { keepalive, silence, askAgain = a, b, c }
}

// CloseStreamTogether opens a stream that the device does not know of and has n
// goroutines close it.
func CloseStreamTogether(c *Client, device string, n int) error {
	s, err := c.openStream(command.VerbLogs, device, 0, command.DefaultLogsWindow, nil)
	if err != nil {
		return err
	}
	var closing sync.WaitGroup
	begin := make(chan struct{})
	for range n {
		closing.Go(func() {
			<-begin
			s.close()
		})
	}
	close(begin)
	closing.Wait()
	return nil
}
