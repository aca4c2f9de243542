// Package broker knows everything about the NATS side of a fleet: the server's
// configuration (accounts, exports, imports, users or auth callout, TLS), an
// embedded server, and the streams and buckets that the DATA account holds.
//
// [Config.Render] gives the configuration as text for a nats-server of its own;
// [Start] runs the same configuration inside this process:
//
//	srv, err := broker.Start(ctx, broker.Config{Port: broker.AnyPort, StoreDir: dir, UserPass: &broker.UserPass{…}})
//	defer srv.Close()
//	nc, err := nats.Connect(srv.ClientURL(), …)
//	changes, err := broker.Provision(ctx, nc, broker.ProvisionOptions{})
//
// The accounts and what flows between them are drawn in docs/architecture.md;
// why each restriction exists is told in docs/security.md.
package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/harmony-fleet/fleet/internal/access"
)

// AnyPort asks for a free port.
const AnyPort = -1

// Names of the static users.
const (
	UserOps     = "ops"     // userpass mode: people, in OPS
	UserData    = "data"    // userpass mode: controllers and deployers, in DATA
	UserDevice  = "device"  // userpass mode: all devices share it, in FLEET
	UserCallout = "callout" // callout mode: the callout service, in AUTH
	UserSystem  = "sys"     // both modes, in SYS
)

// Config describes one server of the broker. Exactly one of UserPass and
// Callout is set.
type Config struct {
	ServerName string // default "fleet"
	Host       string // default 127.0.0.1
	Port       int    // 0 means 4222, AnyPort a free one
	HTTPPort   int    // monitoring endpoint; 0: none, AnyPort a free one
	StoreDir   string // JetStream's directory; required

	Accounts access.Accounts

	UserPass *UserPass // static users for people, controllers and devices
	Callout  *Callout  // tokens, by way of the callout service

	SystemPassword string // of UserSystem; empty: no system user

	TLS     *TLS     // nil: plaintext
	Cluster *Cluster // nil: a single server

	// Logger receives the server's log lines; nil discards them. Only for Start.
	Logger *slog.Logger
}

// UserPass holds the passwords of userpass mode. A value that starts with "$2"
// is taken as a bcrypt hash by the server.
type UserPass struct {
	Ops, Data, Device string
}

// Callout names the keys that tie the server to its callout service.
type Callout struct {
	Issuer   string // public account nkey (A…) that signs minted users
	XKey     string // public curve nkey (X…) of the callout; empty: requests travel unencrypted
	Password string // of UserCallout
}

// TLS names PEM files on the server's machine.
type TLS struct {
	CertFile string
	KeyFile  string
	CAFile   string // with VerifyClients: who signs client certificates
	// VerifyClients asks clients for a certificate of CAFile's.
	VerifyClients bool
}

// Cluster joins the server to others.
type Cluster struct {
	Name   string
	Host   string // default: Config.Host
	Port   int
	Routes []string // nats-route://host:port of the others
}

func (c *Config) setDefaults() {
	if c.ServerName == "" {
		c.ServerName = "fleet"
	}
	if c.Host == "" {
		c.Host = "127.0.0.1"
	}
	if c.Port == 0 {
		c.Port = 4222
	}
	c.Accounts = c.Accounts.WithDefaults()
}

// validate refuses what the server would refuse later, or silently accept.
func (c *Config) validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.StoreDir == "" {
		fault("store directory is empty; JetStream needs one")
	}
	switch {
	case c.UserPass == nil && c.Callout == nil:
		fault("no authentication: set UserPass or Callout")
	case c.UserPass != nil && c.Callout != nil:
		fault("both UserPass and Callout are set; choose one")
	case c.UserPass != nil:
		if c.UserPass.Ops == "" || c.UserPass.Data == "" || c.UserPass.Device == "" {
			fault("userpass mode needs a password for each of %s, %s and %s", UserOps, UserData, UserDevice)
		}
	default:
		if len(c.Callout.Issuer) == 0 || c.Callout.Issuer[0] != 'A' {
			fault("callout issuer is not a public account nkey (A…)")
		}
		if c.Callout.XKey != "" && c.Callout.XKey[0] != 'X' {
			fault("callout xkey is not a public curve nkey (X…)")
		}
		if c.Callout.Password == "" {
			fault("callout mode needs a password for the user %s", UserCallout)
		}
	}
	if c.TLS != nil && (c.TLS.CertFile == "" || c.TLS.KeyFile == "") {
		fault("TLS needs a certificate file and a key file")
	}
	seen := map[string]bool{}
	for _, name := range []string{c.Accounts.Ops, c.Accounts.Data, c.Accounts.Fleet, c.Accounts.Auth, c.Accounts.System} {
		if seen[name] {
			fault("account name %q is used twice", name)
		}
		seen[name] = true
	}
	return errors.Join(errs...)
}

// checkPort fails where the client port is taken, with a message that says what
// to do; the server itself would only log it.
func (c *Config) checkPort() error {
	if c.Port == AnyPort {
		return nil
	}
	addr := net.JoinHostPort(c.Host, fmt.Sprint(c.Port))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; stop what uses that port or choose another one", addr, err)
	}
	return l.Close()
}
