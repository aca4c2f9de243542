package client

import (
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// The server tells of a permission violation on the connection, not in answer to
// the request, so the client has to listen to the connection's error handler. A
// connection has one handler: the clients on it share one hook, which stands
// before the handler that was there.
var hooks = struct {
	mu     sync.Mutex
	byConn map[*nats.Conn]*connHook
}{byConn: map[*nats.Conn]*connHook{}}

type connHook struct {
	before nats.ErrHandler

	mu      sync.Mutex
	clients []*Client
}

func hook(c *Client) {
	hooks.mu.Lock()
	defer hooks.mu.Unlock()
	h := hooks.byConn[c.nc]
	if h == nil {
		h = &connHook{before: c.nc.ErrorHandler()}
		hooks.byConn[c.nc] = h
		c.nc.SetErrorHandler(h.handle)
	}
	h.mu.Lock()
	h.clients = append(h.clients, c)
	h.mu.Unlock()
}

func unhook(c *Client) {
	hooks.mu.Lock()
	defer hooks.mu.Unlock()
	h := hooks.byConn[c.nc]
	if h == nil {
		return
	}
	h.mu.Lock()
	h.clients = slices.DeleteFunc(h.clients, func(o *Client) bool { return o == c })
	rest := len(h.clients)
	h.mu.Unlock()
	if rest > 0 {
		return
	}
	delete(hooks.byConn, c.nc)
	// Where somebody put a handler of their own before the hook, it stays and only
	// hands on.
	if reflect.ValueOf(c.nc.ErrorHandler()).Pointer() == reflect.ValueOf(h.handle).Pointer() {
		c.nc.SetErrorHandler(h.before)
	}
}

func (h *connHook) handle(nc *nats.Conn, sub *nats.Subscription, err error) {
	if errors.Is(err, nats.ErrPermissionViolation) {
		h.mu.Lock()
		clients := slices.Clone(h.clients)
		h.mu.Unlock()
		handled := false
		for _, c := range clients {
			handled = c.onViolation(err) || handled
		}
		if handled {
			return
		}
	}
	if h.before != nil {
		h.before(nc, sub, err)
	}
}

// onViolation ends the requests that a permission violation speaks of, and tells
// whether there were any.
func (c *Client) onViolation(err error) bool {
	subject, subscription, ok := parseViolation(err.Error())
	switch {
	case !ok:
		return false
	case subscription && subject == c.mux.prefix+"*":
		c.mux.refuse(fault(command.OutcomeDenied, err,
			"the broker does not let this user receive replies under %s; connect with the user's own inbox prefix", strings.TrimSuffix(c.mux.prefix, ".")))
		return true
	case subscription:
		return c.streams.refuse(subject, fault(command.OutcomeDenied, err, "the broker does not let this user receive the output of sessions; it lacks the role"))
	}
	what := "publish on " + subject
	target, parseErr := command.ParseSubject(subject)
	if parseErr == nil {
		what = "send this command to this device"
		if target.Verb != "" {
			what = "send " + string(target.Verb) + " to this device"
		}
	}
	denied := fault(command.OutcomeDenied, err, "the broker does not let this user %s; it lacks the role", what)
	if parseErr == nil && target.Verb == "" {
		return c.streams.refuseControl(target, denied)
	}
	return c.mux.failSubject(subject, denied)
}

// parseViolation takes the subject out of the server's message:
//
//	Permissions Violation for Publish to "device-commands.vm-device-00.exec"
//	Permissions Violation for Subscription to "_INBOX.x.*" using queue "q"
func parseViolation(message string) (subject string, subscription, ok bool) {
	const publish, subscribe = `Violation for Publish to "`, `Violation for Subscription to "`
	_, quoted, found := strings.Cut(message, publish)
	if !found {
		if _, quoted, found = strings.Cut(message, subscribe); !found {
			return "", false, false
		}
		subscription = true
	}
	quoted, err := strconv.QuotedPrefix(`"` + quoted)
	if err != nil {
		return "", false, false
	}
	subject, err = strconv.Unquote(quoted)
	return subject, subscription, err == nil && subject != ""
}
