package client

import (
	"errors"
	"regexp"
	"sync"

	"github.com/nats-io/nats.go"
)

// The broker refuses a publish asynchronously, by an -ERR that names the
// subject, which reaches the connection's one error handler. Clients on the same
// connection share a hook, so that closing one leaves the others theirs.
var (
	hooksMu sync.Mutex
	hooks   = map[*nats.Conn]*hook{}
)

type hook struct {
	before nats.ErrHandler // what was set before the first client; may be nil

	mu    sync.Mutex
	muxes map[*mux]bool
}

func hookErrors(nc *nats.Conn, m *mux) {
	hooksMu.Lock()
	defer hooksMu.Unlock()
	h := hooks[nc]
	if h == nil {
		h = &hook{before: nc.ErrorHandler(), muxes: map[*mux]bool{}}
		hooks[nc] = h
		nc.SetErrorHandler(h.handle)
	}
	h.mu.Lock()
	h.muxes[m] = true
	h.mu.Unlock()
}

func unhookErrors(nc *nats.Conn, m *mux) {
	hooksMu.Lock()
	defer hooksMu.Unlock()
	h := hooks[nc]
	if h == nil {
		return
	}
	h.mu.Lock()
	delete(h.muxes, m)
	last := len(h.muxes) == 0
	h.mu.Unlock()
	if last {
		delete(hooks, nc)
		nc.SetErrorHandler(h.before)
	}
}

func (h *hook) handle(nc *nats.Conn, sub *nats.Subscription, err error) {
	if subject, ok := refusedPublish(err); ok {
		h.mu.Lock()
		muxes := make([]*mux, 0, len(h.muxes))
		for m := range h.muxes {
			muxes = append(muxes, m)
		}
		h.mu.Unlock()
		for _, m := range muxes {
			m.refuse(subject, err)
		}
	}
	if h.before != nil {
		h.before(nc, sub, err)
	}
}

// refusedPublish reads the subject out of
// `nats: permissions violation: Permissions Violation for Publish to "a.b"`.
func refusedPublish(err error) (subject string, ok bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	found := publishViolation.FindStringSubmatch(err.Error())
	if found == nil {
		return "", false
	}
	return found[1], true
}

var publishViolation = regexp.MustCompile(`(?i)permissions violation for publish to "(\S+)"`)
