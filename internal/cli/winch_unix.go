//go:build unix

package cli

import (
	"os"
	"os/signal"
	"syscall"
)

// watchSize passes changes of the terminal's size on until the function that it
// gives is called.
func (t *terminal) watchSize() (stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-over:
				return
			case <-changed:
				t.resized()
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		close(over)
		<-done
	}
}
