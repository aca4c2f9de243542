// Package natsconn dials NATS the way every part of the fleet does: the
// credential is asked for anew at each connect, a secret never crosses a
// plaintext connection that is not loopback, a cut connection is noticed within
// a minute, and agents never give up.
//
//	nc, err := natsconn.Connect(ctx, natsconn.Config{
//		URLs:        []string{"tls://nats.example:4222"},
//		Credentials: source,
//		InboxPrefix: command.DeviceInboxPrefix("vm-device-00"),
//		Retry:       true,
//	})
package natsconn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/netaddr"
)

// Times of a connection. Pings find a peer whose power was cut after 45 to 60 s;
// the library's defaults take 6 to 8 minutes.
const (
	ConnectTimeout   = 10 * time.Second
	CredentialBudget = 10 * time.Second
	ReconnectWait    = 2 * time.Second
	ReconnectJitter  = 10 * time.Second
	PingInterval     = 15 * time.Second
	MaxPings         = 2
)

// Config says where to connect and as whom.
type Config struct {
	// URLs are nats://, tls://, ws:// or wss:// addresses; a bare host:port is
	// nats://. Default nats://127.0.0.1:4222.
	URLs []string
	TLS  TLS
	// Insecure lets a secret cross a plaintext connection that is not loopback.
	Insecure bool
	// Credentials gives user and password, or a token, at each connect; nil: none.
	Credentials credentials.Source
	// InboxPrefix is the only prefix under which the connection may receive
	// replies; see command.InboxPrefix. Empty: the library's.
	InboxPrefix string
	// Name is what the broker's monitoring shows; never trusted by anyone.
	Name string
	// Retry makes Connect return at once and try for ever in the background.
	// Without it, Connect fails early with an [*command.Error].
	Retry bool
	// EndWhenRefused closes the connection once the broker has refused, on two
	// reconnects in a row, a credential that was asked for anew: it expired or was
	// revoked, and nothing that waits will change that. A refusal that took as long
	// as an auth callout that is away does not count. Without it, and for agents,
	// reconnects go on for ever.
	EndWhenRefused bool
	// InProcess, if set, replaces TCP: a server inside this process.
	InProcess nats.InProcessConnProvider
	// Logger gets what happens to the connection; nil discards.
	Logger *slog.Logger
	// Options are added last.
	Options []nats.Option
}

// TLS names PEM files.
type TLS struct {
	CA   string `toml:"ca"`   // who signs the server's certificate; empty: the system's pool
	Cert string `toml:"cert"` // client certificate, if the server asks for one
	Key  string `toml:"key"`
}

// Connect dials. With Config.Retry it fails only for a configuration that can
// never work; otherwise within ConnectTimeout for each server, as
// [*command.Error]: denied where the broker refuses the credential, failed
// elsewhere. ctx ends the attempts that Connect itself makes; the connection and
// its reconnects outlive it.
func Connect(ctx context.Context, cfg Config) (*nats.Conn, error) {
	d, err := newDialer(ctx, cfg)
	if err != nil {
		return nil, err
	}
	attempt, release := context.WithCancel(ctx)
	d.first.Store(&attempt)
	nc, err := nats.Connect(strings.Join(d.urls, ","), d.options()...)
	d.first.Store(nil)
	release() // after first is nil: it ends no connection that was made
	if err != nil {
		if ctx.Err() != nil {
			return nil, &command.Error{Outcome: command.OutcomeFailed, Message: "connect to " + d.where() + ": gave up", Err: context.Cause(ctx)}
		}
		return nil, d.explain(err)
	}
	return nc, nil
}

type dialer struct {
	Config
	urls []string
	log  *slog.Logger

	// lastErr is the last failure of the credential source: the library reports only
	// that no server could be reached.
	lastErr atomic.Pointer[error]
	// current is the credential of the connect under way.
	current atomic.Pointer[credentials.Credential]
	ctx     context.Context // of no deadline: reconnects outlive Connect
	// first is the context of Connect while Connect runs.
	first atomic.Pointer[context.Context]
	// began is when the attempt under way reached out to the server.
	began atomic.Pointer[time.Time]
	// last is the connection of the attempt before: the library leaves one open that
	// was refused at a reconnect, until it is collected as garbage.
	last atomic.Pointer[net.Conn]
	// refusals in a row; the library's handlers run one after the other.
	refusals int
}

// attempt is the context of the attempt under way.
func (d *dialer) attempt() context.Context {
	if ctx := d.first.Load(); ctx != nil {
		return *ctx
	}
	return d.ctx
}

func newDialer(ctx context.Context, cfg Config) (*dialer, error) {
	d := &dialer{Config: cfg, log: cfg.Logger, urls: cfg.URLs, ctx: context.WithoutCancel(ctx)}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if len(d.urls) == 0 {
		d.urls = []string{nats.DefaultURL}
	}
	if d.InProcess != nil {
		return d, nil
	}
	for i, u := range d.urls {
		normal, err := CheckURL(u, cfg.TLS.CA != "", cfg.Credentials != nil, cfg.Insecure)
		if err != nil {
			return nil, &command.Error{Outcome: command.OutcomeRejected, Err: err}
		}
		if i == 0 {
			d.urls = append([]string(nil), d.urls...)
		}
		d.urls[i] = normal
	}
	return d, nil
}

// plaintext tells whether a secret goes out in clear, which is for loopback only.
func (d *dialer) plaintext() bool {
	if d.Credentials == nil || d.Insecure || d.InProcess != nil || d.TLS.CA != "" {
		return false
	}
	return !slices.ContainsFunc(d.urls, func(u string) bool {
		// The library requires TLS of all servers where one address asks for it.
		return strings.HasPrefix(u, "tls://") || strings.HasPrefix(u, "wss://")
	})
}

// CheckURL refuses an address that is not one, or over which a secret would
// travel in clear to another machine. hasCA says that TLS is required by
// configuration, so that nats:// is not plaintext.
func CheckURL(raw string, hasCA, secret, insecure bool) (string, error) {
	if !strings.Contains(raw, "://") {
		raw = "nats://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("server address %q: want nats://host:port or tls://host:port", redact(raw))
	}
	if u.User != nil {
		return "", fmt.Errorf("server address %q holds a user or password; give them apart, so that they do not end up in logs", u.Redacted())
	}
	switch u.Scheme {
	case "tls", "wss":
		return raw, nil
	case "nats", "ws":
	default:
		return "", fmt.Errorf("server address %q: unknown scheme %q; use nats, tls, ws or wss", raw, u.Scheme)
	}
	if secret && !insecure && !netaddr.IsLoopback(u.Hostname()) && (!hasCA || u.Scheme == "ws") {
		return "", fmt.Errorf("server address %q is plaintext and not on this machine: a token or password would travel in clear; use tls://, name a CA file, or allow it (insecure = true in a configuration, --insecure on the command line)", raw)
	}
	return raw, nil
}

// redact takes what might be a password out of an address that does not parse.
func redact(raw string) string {
	if i := strings.LastIndexByte(raw, '@'); i >= 0 {
		return "…" + raw[i:]
	}
	return raw
}

func (d *dialer) options() []nats.Option {
	opts := []nats.Option{
		nats.Name(d.Name),
		nats.Timeout(ConnectTimeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(ReconnectWait),
		nats.ReconnectJitter(ReconnectJitter, ReconnectJitter),
		nats.PingInterval(PingInterval),
		nats.MaxPingsOutstanding(MaxPings),
		// A callout that is away looks like a denial; two in a row would end the
		// connection for good.
		nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				d.log.Warn("connection to the broker lost; reconnecting", "error", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			d.log.Info("connected to the broker again", "server", nc.ConnectedUrlRedacted())
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			d.log.Info("not connected to the broker yet; trying again", "error", d.explain(err))
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if !Refused(err) { // that is said by refused
				d.log.Warn("broker", "error", err)
			}
		}),
	}
	if d.Retry {
		opts = append(opts, nats.RetryOnFailedConnect(true))
	}
	if d.plaintext() {
		// Servers tell clients of their neighbours. A reconnect to one of those, from
		// an address that was only plaintext because it is loopback (a port-forward,
		// say), would carry the secret to another machine in clear.
		opts = append(opts, nats.IgnoreDiscoveredServers())
	}
	if d.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(d.InboxPrefix))
	}
	if d.Credentials != nil {
		opts = append(opts, nats.UserInfoHandler(d.userInfo), nats.TokenHandler(d.token))
	}
	if d.InProcess != nil {
		opts = append(opts, nats.InProcessServer(d))
	} else {
		opts = append(opts, nats.SetCustomDialer(d))
		if d.TLS.CA != "" {
			opts = append(opts, nats.RootCAs(d.TLS.CA), nats.Secure())
		}
		if d.TLS.Cert != "" {
			opts = append(opts, nats.ClientCert(d.TLS.Cert, d.TLS.Key))
		}
	}
	// A refusal at a reconnect comes to the error handler only, so that has to be
	// heard whoever's handler is set.
	return append(append(opts, d.Config.Options...), func(o *nats.Options) error {
		handler, reconnected := o.AsyncErrorCB, o.ReconnectedCB
		o.ReconnectedCB = func(nc *nats.Conn) {
			d.refusals = 0
			if reconnected != nil {
				reconnected(nc)
			}
		}
		o.AsyncErrorCB = func(nc *nats.Conn, sub *nats.Subscription, err error) {
			if Refused(err) {
				d.refused(nc, err)
			}
			if handler != nil {
				handler(nc, sub, err)
			}
		}
		return nil
	})
}

// Refused tells whether err is the broker's refusal of a credential, at connect
// or, where it expired or was revoked, later.
func Refused(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked)
}

// refused hears of each refusal after Connect: of a reconnect
// (nats.ErrAuthorization), or of a connection that stood until now (the others).
func (d *dialer) refused(nc *nats.Conn, err error) {
	if !errors.Is(err, nats.ErrAuthorization) {
		d.log.Info("the broker ended the connection; signing in again", "error", err)
		return
	}
	if d.Credentials != nil {
		credentials.Invalidate(d.Credentials)
	}
	// Two, because a callout that starts refuses at once while it has not got the
	// issuer's keys.
	if d.EndWhenRefused && !d.calloutSilent() {
		d.refusals++
	}
	if d.refusals == 2 {
		d.log.Info("signing in again was refused twice; giving up", "error", d.explain(err))
		nc.Close()
		return
	}
	d.log.Warn("not signed in to the broker again; trying on", "error", d.explain(err))
}

// calloutBudget is what a server gives its auth callout (2 s), less the time
// that its clock may have begun before ours.
const calloutBudget = 1900 * time.Millisecond

// calloutSilent tells whether a refusal came so late that the server may have
// waited in vain for its callout: both are the same two words on the wire.
func (d *dialer) calloutSilent() bool {
	began := d.began.Load()
	return began != nil && time.Since(*began) >= calloutBudget
}

// pingedFirst tells whether err is the library's complaint that the server sent a
// PING to a client that it has not let in yet. It does so 2 s after the client
// came, which is also what it gives its callout: which of the two comes first is
// chance.
func pingedFirst(err error) bool { return strings.Contains(err.Error(), "expected 'PONG', got 'PING'") }

// Dial is for nats.SetCustomDialer. The credential is asked for before the
// connection is opened: the server gives a client that has connected 2 s to sign
// in, less than an issuer may take.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	d.closeLast()
	if err := d.fetch(); err != nil {
		return nil, err
	}
	d.beginAttempt()
	ctx := d.attempt()
	conn, err := (&net.Dialer{Timeout: ConnectTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	// The handshake that follows knows no context. Once Connect has returned, its
	// context ends nothing any more.
	context.AfterFunc(ctx, func() {
		if d.first.Load() != nil {
			_ = conn.Close()
		}
	})
	d.last.Store(&conn)
	return conn, nil
}

// closeLast closes the connection of the attempt before: there is another attempt
// because that one is of no use any more.
func (d *dialer) closeLast() {
	if last := d.last.Swap(nil); last != nil {
		_ = (*last).Close() // as a rule it is closed
	}
}

// InProcessConn is for nats.InProcessServer.
func (d *dialer) InProcessConn() (net.Conn, error) {
	d.closeLast()
	if err := d.fetch(); err != nil {
		return nil, err
	}
	d.beginAttempt()
	conn, err := d.InProcess.InProcessConn()
	if err == nil {
		d.last.Store(&conn)
	}
	return conn, err
}

func (d *dialer) beginAttempt() {
	now := time.Now()
	d.began.Store(&now)
}

// fetch asks the source, within its budget, and keeps what it got for the
// handlers that the library calls later in the same connect.
func (d *dialer) fetch() error {
	if d.Credentials == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(d.attempt(), CredentialBudget)
	defer cancel()
	c, err := d.Credentials.Credential(ctx)
	if err != nil {
		err = &command.Error{Outcome: command.OutcomeFailed, Message: "no credential to sign in with", Err: err}
		d.lastErr.Store(&err)
		return err
	}
	d.lastErr.Store(nil)
	d.current.Store(&c)
	return nil
}

func (d *dialer) userInfo() (string, string) {
	if c := d.current.Load(); c != nil {
		return c.User, c.Password
	}
	return "", ""
}

func (d *dialer) token() string {
	if c := d.current.Load(); c != nil {
		return c.Token
	}
	return ""
}

func (d *dialer) where() string {
	if d.InProcess != nil {
		return "the server in this process"
	}
	return strings.Join(d.urls, ", ")
}

// explain turns the library's error into one that says what to do.
func (d *dialer) explain(err error) error {
	where := d.where()
	if p := d.lastErr.Load(); p != nil {
		return *p
	}
	switch {
	case (errors.Is(err, nats.ErrAuthorization) || pingedFirst(err)) && d.calloutSilent():
		return &command.Error{Outcome: command.OutcomeDenied, Message: "the broker at " + where +
			" did not accept the credential within 2 s: its auth callout may not have answered in time; check that fleet-callout runs and is ready (/readyz), and where it is, its log says why", Err: err}
	case Refused(err):
		return &command.Error{Outcome: command.OutcomeDenied, Message: "the broker at " + where +
			" refused the credential: it may be expired or lack a role for this account; the callout's log says why", Err: err}
	case errors.Is(err, nats.ErrNoServers):
		return &command.Error{Outcome: command.OutcomeFailed, Message: "no broker answers at " + where +
			"; check the address and that it runs", Err: err}
	}
	return &command.Error{Outcome: command.OutcomeFailed, Message: "connect to " + where, Err: err}
}
