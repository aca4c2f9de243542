package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// closeTimeout bounds what Close asks of the cluster; it takes some tens of
// milliseconds.
const closeTimeout = 10 * time.Second

// Close takes the stack down: agents on this machine are stopped, the Pods end at
// once, and the namespace is left to the cluster, which removes it some seconds
// later. It may be called at any time, more than once, and from several goroutines,
// which all wait for the end of it. With KeepNamespace everything in the cluster
// goes on running.
func (s *Stack) Close() error {
	s.closing.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Stack) close() error {
	defer forget(s)
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	s.cancel() // nothing is made again from here on
	var deleted error
	var wg sync.WaitGroup
	if s.asked() && !s.opts.KeepNamespace {
		wg.Go(func() { deleted = deleteNamespace(ctx, s.kube, s.Namespace, nil) })
	}
	s.mu.Lock()
	agents := s.agents
	s.agents = nil
	s.mu.Unlock()
	errs := make([]error, len(agents))
	for i, a := range agents {
		wg.Go(func() { errs[i] = a.stop() })
	}
	wg.Go(func() {
		if s.client != nil {
			_ = s.client.Close()
		}
		s.conns.Close()
	})
	wg.Wait()
	s.wg.Wait()
	if s.kube != nil {
		s.kube.close()
	}
	if s.dir != "" && !s.opts.KeepNamespace {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	if err := errors.Join(append(errs, deleted)...); err != nil {
		return fmt.Errorf("take down %s: %w", s.Namespace, err)
	}
	return nil
}

// asked tells whether the cluster was asked for the namespace.
func (s *Stack) asked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespaceAsked
}

// live are the stacks of this process that a signal has to close.
var live struct {
	sync.Mutex
	stacks map[*Stack]bool
	stop   func() // ends the goroutine that waits for signals
}

// closeOnSignal has the stack closed when the process is interrupted or told to end.
// The signal then takes its course.
func closeOnSignal(s *Stack) {
	live.Lock()
	defer live.Unlock()
	if live.stacks == nil {
		live.stacks = map[*Stack]bool{}
	}
	live.stacks[s] = true
	if live.stop != nil {
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	live.stop = func() {
		signal.Stop(signals)
		close(done)
	}
	go func() {
		select {
		case <-done:
			return
		case sig := <-signals:
			closeAll(fmt.Errorf("interrupted: %v", sig))
			// Whoever else listens gets it twice; where nobody does, it ends the process.
			signal.Stop(signals)
			_ = syscall.Kill(os.Getpid(), sig.(syscall.Signal))
		}
	}()
}

func closeAll(cause error) {
	live.Lock()
	stacks := slices.Collect(maps.Keys(live.stacks))
	live.Unlock()
	var wg sync.WaitGroup
	for _, s := range stacks {
		wg.Go(func() {
			s.interrupt(cause)
			<-s.settled
			if err := s.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "e2e:", err)
			}
		})
	}
	wg.Wait()
}

// forget takes a closed stack off the list.
func forget(s *Stack) {
	live.Lock()
	defer live.Unlock()
	delete(live.stacks, s)
	if len(live.stacks) == 0 && live.stop != nil {
		live.stop()
		live.stop = nil
	}
}
