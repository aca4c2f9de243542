package callout

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/internal/oidcverify"
)

// serverBudget is how long a nats-server waits for an answer (2.15: always 2 s).
const serverBudget = 2 * time.Second

// job is one request on its way.
type job struct {
	msg      *nats.Msg
	received time.Time
}

// accept is the subscription's callback: it only files the request.
func (s *Service) accept(msg *nats.Msg) {
	if s.queue.push(job{msg: msg, received: time.Now()}) {
		s.dropped("overflow")
	}
}

// work is one worker. It ends when the queue is closed and empty.
func (s *Service) work(ctx context.Context) {
	for {
		j, stale, ok := s.queue.pop()
		for range stale {
			s.dropped("stale")
		}
		switch {
		case !ok:
			return
		case j.msg != nil:
			s.handle(ctx, j)
		}
	}
}

// login is what is known of a login, for its log line.
type login struct {
	req     *authRequest
	issuer  string // as configured, once the token named it
	subject string // once verified
	made    decision
}

// handle answers one request. Whatever happens, the server hears something: it holds the
// client until then.
func (s *Service) handle(ctx context.Context, j job) {
	ctx, cancel := context.WithDeadline(ctx, j.received.Add(serverBudget-100*time.Millisecond))
	defer cancel()
	var l login
	defer func() {
		if p := recover(); p != nil {
			s.logger.Error("a login made the service panic", "panic", p, "stack", string(debug.Stack()))
			s.refuse(j, &l, deny(ReasonInternal, "panic"))
		}
	}()
	token, err := s.login(ctx, j.msg, &l)
	if err != nil {
		s.refuse(j, &l, denialOf(err))
		return
	}
	answer, err := s.keys.answer(l.req, token, "")
	if err != nil {
		s.refuse(j, &l, denialOf(err))
		return
	}
	s.metrics.done("allowed", "", time.Since(j.received))
	level := slog.LevelInfo
	if l.made.Device != "" {
		level = slog.LevelDebug // thousands of them after a server's restart
	}
	s.logger.Log(ctx, level, "login allowed", "issuer", l.issuer, "subject", l.subject, "device_id", l.made.Device,
		"account", l.made.Account, "roles", l.made.Roles, "client", l.req.info.Host, "ref", l.req.ref())
	s.respond(j, answer)
}

// respond sends an answer. It may fail: then the server is gone, and its clients too.
func (s *Service) respond(j job, answer []byte) {
	if err := j.msg.Respond(answer); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		s.logger.Warn("cannot send an answer", "error", err)
	}
}

// login works out the user JWT of a request, filling l as it learns more.
func (s *Service) login(ctx context.Context, msg *nats.Msg, l *login) (string, error) {
	var err error
	if l.req, err = s.keys.decode(msg); err != nil {
		return "", err
	}
	if kind := l.req.info.Kind; kind != "Client" || (l.req.info.Type != "nats" && l.req.info.Type != "websocket") {
		return "", deny(ReasonConnectionKind, "a %s connection of type %q", kind, l.req.info.Type)
	}
	token, userField := l.req.credential()
	if token == "" {
		return "", deny(ReasonNoToken, "the client sent no token (it goes in auth_token)")
	}
	if s.probe.ours(token) {
		return "", deny(reasonProbe, "self-probe")
	}
	claimed, err := oidcverify.PeekIssuer(token)
	if err != nil {
		return "", err
	}
	iss := s.issuers[claimed]
	if iss == nil {
		return "", deny(ReasonUnknownIssuer, "the token's issuer %s is not configured", oidcverify.Clip(claimed))
	}
	l.issuer = iss.cfg.URL
	claims, err := iss.verifier.Verify(ctx, token)
	if err != nil {
		return "", err
	}
	l.subject = claims.Subject
	if l.made, err = decide(iss.cfg, claims, userField); err != nil {
		return "", err
	}
	if err := checkName(l.made, l.req.info.Name); err != nil {
		return "", err
	}
	expires, err := expiry(time.Now(), claims.Expiry, time.Duration(s.cfg.MaxSession), jitter())
	if err != nil {
		return "", err
	}
	return s.keys.mintUser(l.req.user, l.made, s.cfg.Accounts.Name(l.made.Account), expires)
}

// refuse answers with a denial, logs and counts it. The server puts the answer's text in
// its own log and tells the client nothing but that it is not authorized; even so the text
// says no more than where to look.
func (s *Service) refuse(j job, l *login, d *Denial) {
	text := "access denied"
	var answer []byte // empty: the server denies "without reason", which also is at once
	if l.req != nil {
		text += ", see the callout's log for ref " + l.req.ref()
		if d.Reason == reasonProbe {
			text = "self-probe of the callout, all is well"
		}
		var err error
		if answer, err = s.keys.answer(l.req, "", text); err != nil {
			s.logger.Error("cannot make a denial", "error", err)
		}
	}
	// Counted and logged before the client can know.
	defer s.respond(j, answer)
	if d.Reason == reasonProbe {
		s.metrics.done("probe", string(d.Reason), time.Since(j.received))
		return
	}
	s.metrics.done("denied", string(d.Reason), time.Since(j.received))
	attrs := []any{"reason", d.Reason, "detail", d.Text, "issuer", l.issuer, "subject", l.subject}
	if l.req != nil {
		attrs = append(attrs, "client", l.req.info.Host, "client_name", oidcverify.Clip(l.req.info.Name), "ref", l.req.ref())
	}
	s.logger.Warn("login denied", attrs...)
}

// dropped counts a request that stays unanswered, and says so at most once a second.
func (s *Service) dropped(why string) {
	s.metrics.dropped.WithLabelValues(why).Inc()
	now := time.Now().UnixNano()
	last := s.lastDropLog.Load()
	if now-last > int64(time.Second) && s.lastDropLog.CompareAndSwap(last, now) {
		s.logger.Warn("overloaded: dropping logins unanswered, their clients try again", "why", why, "queued", s.queue.len())
	}
}
