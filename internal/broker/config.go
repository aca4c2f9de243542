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
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nkeys"

	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/netaddr"
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

// Cluster joins the server to others. Whoever may join is trusted with every
// account, so that a cluster beyond loopback needs a password, or TLS that
// verifies the others.
type Cluster struct {
	Name   string
	Host   string // default: Config.Host
	Port   int
	Routes []string // nats-route://host:port of the others, with the password left out

	// Password is that of all servers of the cluster to each other; empty: none.
	Password string
	// TLS is for the routes; nil: plaintext. With VerifyClients each server must
	// show a certificate of CAFile's.
	TLS *TLS
}

// routeUser is the name under which the servers of a cluster sign in to each
// other.
const routeUser = "route"

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
		if !nkeys.IsValidPublicAccountKey(c.Callout.Issuer) {
			fault("callout issuer is not a public account nkey (A…)")
		}
		if c.Callout.XKey != "" && !nkeys.IsValidPublicCurveKey(c.Callout.XKey) {
			fault("callout xkey is not a public curve nkey (X…)")
		}
		if c.Callout.Password == "" {
			fault("callout mode needs a password for the user %s", UserCallout)
		}
	}
	if c.TLS != nil && (c.TLS.CertFile == "" || c.TLS.KeyFile == "") {
		fault("TLS needs a certificate file and a key file")
	}
	if c.TLS != nil && c.TLS.VerifyClients && c.TLS.CAFile == "" {
		fault("to verify clients, TLS needs a CA file")
	}
	if c.Cluster != nil {
		c.Cluster.validate(c.Host, fault)
	}
	for _, port := range []int{c.Port, c.HTTPPort} {
		if port < AnyPort || port > 65535 {
			fault("port %d is not a port", port)
		}
	}
	c.eachText(func(what, text string) {
		if !renderable(text) {
			fault("%s has characters that nats-server's configuration cannot carry: control characters, U+2028, U+2029, or bytes that are not UTF-8", what)
		}
	})
	seen := map[string]bool{}
	for _, name := range []string{c.Accounts.Ops, c.Accounts.Data, c.Accounts.Deploy, c.Accounts.Fleet, c.Accounts.Auth, c.Accounts.System} {
		if name == "" || strings.ContainsAny(name, "*> \t") || slices.Contains(strings.Split(name, "."), "") {
			fault("account name %q: it is part of subjects, and has no white space, wildcard or empty token", name)
		}
		if strings.HasPrefix(name, "$") {
			fault("account name %q: names with '$' are the server's own", name)
		}
		if seen[name] {
			fault("account name %q is used twice", name)
		}
		seen[name] = true
	}
	return errors.Join(errs...)
}

func (c *Cluster) validate(host string, fault func(string, ...any)) {
	if c.Name == "" || c.Port == 0 {
		fault("a cluster needs a name and a port")
	}
	if c.Host != "" {
		host = c.Host
	}
	if !netaddr.IsLoopback(host) && c.Password == "" && (c.TLS == nil || !c.TLS.VerifyClients) {
		fault("a cluster that listens on %s needs a password, or TLS that verifies the other servers: whoever joins it has every account", host)
	}
	if c.TLS != nil && (c.TLS.CertFile == "" || c.TLS.KeyFile == "" || c.TLS.CAFile == "") {
		fault("TLS of the cluster needs a certificate file, a key file and a CA file")
	}
	for _, route := range c.Routes {
		if u, err := url.Parse(route); err != nil || u.Host == "" || u.User != nil {
			fault("a route of the cluster is not of the form nats-route://host:port")
		}
	}
}

// eachText calls f with each free text of the configuration, by a name that may
// stand in an error: the text itself may be a password.
func (c *Config) eachText(f func(what, text string)) {
	f("server name", c.ServerName)
	f("host", c.Host)
	f("store directory", c.StoreDir)
	f("password of "+UserSystem, c.SystemPassword)
	if c.UserPass != nil {
		f("password of "+UserOps, c.UserPass.Ops)
		f("password of "+UserData, c.UserPass.Data)
		f("password of "+UserDevice, c.UserPass.Device)
	}
	if c.Callout != nil {
		f("password of "+UserCallout, c.Callout.Password)
	}
	if c.TLS != nil {
		f("TLS certificate file", c.TLS.CertFile)
		f("TLS key file", c.TLS.KeyFile)
		f("TLS CA file", c.TLS.CAFile)
	}
	if c.Cluster != nil {
		f("cluster name", c.Cluster.Name)
		f("cluster host", c.Cluster.Host)
		f("password of the cluster", c.Cluster.Password)
		for _, r := range c.Cluster.Routes {
			f("cluster route", r)
		}
	}
	for _, name := range []string{c.Accounts.Ops, c.Accounts.Data, c.Accounts.Deploy, c.Accounts.Fleet, c.Accounts.Auth, c.Accounts.System} {
		f("account name", name)
	}
}

// renderable tells whether the JSON encoder writes text without the escapes
// that nats-server's parser does not know (\u, \b, \f).
func renderable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || r == '\u2028' || r == '\u2029'
	})
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
