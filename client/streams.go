package client

import (
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// streams are those of a client that are open.
type streams struct {
	mu   sync.Mutex
	open map[*stream]struct{}
	// shared are those of a job, by the subject of their output.
	shared map[string]*stream
	shut   bool
}

func (l *streams) add(s *stream) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return false
	}
	if l.open == nil {
		l.open = map[*stream]struct{}{}
	}
	l.open[s] = struct{}{}
	if s.shared != "" {
		if l.shared == nil {
			l.shared = map[string]*stream{}
		}
		l.shared[s.subject] = s
	}
	return true
}

func (l *streams) remove(s *stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, s)
	if l.shared[s.subject] == s {
		delete(l.shared, s.subject)
	}
}

// deliver gives a message to the stream of a job that it is for. Others of the
// same user come here too, and are nobody's.
func (l *streams) deliver(msg *nats.Msg) {
	l.mu.Lock()
	s := l.shared[msg.Subject]
	l.mu.Unlock()
	if s != nil {
		s.onMsg(msg)
	}
}

func (l *streams) each(f func(*stream)) {
	l.mu.Lock()
	all := make([]*stream, 0, len(l.open))
	for s := range l.open {
		all = append(all, s)
	}
	l.mu.Unlock()
	for _, s := range all {
		f(s)
	}
}

// close ends every stream, and refuses new ones.
func (l *streams) close(err *command.Error) {
	l.mu.Lock()
	l.shut = true
	l.mu.Unlock()
	l.each(func(s *stream) { s.fail(err) })
}

// refuse ends the streams that subscribe to subject and tells whether there were
// any.
func (l *streams) refuse(subject string, err *command.Error) bool {
	found := false
	l.each(func(s *stream) {
		if s.subject == subject || s.shared == subject {
			found = true
			s.fail(err)
		}
	})
	return found
}

// refuseControl ends the stream whose session control the broker refuses, and
// tells whether there is one.
func (l *streams) refuseControl(target command.Target, err *command.Error) bool {
	found := false
	l.each(func(s *stream) {
		if s.device == target.Device && s.id == target.Session {
			found = true
			s.fail(err)
		}
	})
	return found
}
