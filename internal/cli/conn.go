package cli

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/version"
)

// connFlags are the global flags that say how to connect.
type connFlags struct {
	server, token, tokenFile, user, password string
	ca, cert, key                            string
	insecure                                 bool
}

func (f *connFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.server, "server", "", "NATS `URL`, or several with commas (FLEET_SERVER)")
	fs.StringVar(&f.token, "token", "", "OIDC token (FLEET_TOKEN); others on this machine can read a command line")
	fs.StringVar(&f.tokenFile, "token-file", "", "`file` that holds the token")
	fs.StringVar(&f.user, "user", "", "NATS user (FLEET_USER)")
	fs.StringVar(&f.password, "password", "", "its password (FLEET_PASSWORD); others on this machine can read a command line")
	fs.StringVar(&f.ca, "ca", "", "PEM `file` of the authorities that signed the server's certificate (FLEET_CA)")
	fs.StringVar(&f.cert, "cert", "", "PEM `file` of a client certificate")
	fs.StringVar(&f.key, "key", "", "PEM `file` of its key")
	fs.BoolVar(&f.insecure, "insecure", false, "send credentials over a plaintext connection that is not loopback")
}

// login is one way to sign in: a token, or a user and a password.
type login struct {
	token, tokenFile, user, password string
	from                             string // where it was found, for messages
}

func (l login) empty() bool {
	return l.token == "" && l.tokenFile == "" && l.user == "" && l.password == ""
}

func (l login) check() error {
	ways := 0
	for _, set := range []bool{l.token != "", l.tokenFile != "", l.user != "" || l.password != ""} {
		if set {
			ways++
		}
	}
	switch {
	case ways > 1:
		return rejected("%s give more than one of token, token file and user; choose one", l.from)
	case l.user == "" && l.password != "":
		return rejected("%s give a password without a user", l.from)
	case l.user != "" && l.password == "":
		return rejected("%s give user %q without a password; set FLEET_PASSWORD", l.from, l.user)
	}
	return nil
}

// settings are a connection's settings once flags, environment and context file
// have been put together.
type settings struct {
	server   string
	login    login
	data     login // for the data account; empty: login enters it too
	ca       string
	cert     string
	key      string
	insecure bool
	context  *contextFile // nil unless something was taken from it
}

// settings puts together how to connect. Each of server and login is taken from
// the first place that has it. The login of the context file goes to the server
// of the context file only: credentials are never sent to a server that they
// were not given for.
func (a *app) settings() (settings, error) {
	f := a.flags
	s := settings{server: f.server, ca: f.ca, cert: f.cert, key: f.key, insecure: f.insecure}
	if s.server == "" {
		s.server = a.getenv("FLEET_SERVER")
	}
	if s.ca == "" {
		s.ca = a.getenv("FLEET_CA")
	}
	s.login = login{token: f.token, tokenFile: f.tokenFile, user: f.user, password: f.password, from: "the flags"}
	if f.user != "" && f.password == "" {
		s.login.password = a.getenv("FLEET_PASSWORD")
	}
	if s.login.empty() {
		s.login = login{token: a.getenv("FLEET_TOKEN"), user: a.getenv("FLEET_USER"), password: a.getenv("FLEET_PASSWORD"), from: "the environment variables"}
	}
	// Before any message names it.
	if err := checkServer(s.server); err != nil {
		return s, err
	}
	if s.server == "" || s.login.empty() {
		if err := s.fromContext(a); err != nil {
			return s, err
		}
	}
	return s, s.login.check()
}

// checkServer refuses what is not a list of server addresses, or holds a
// password, without quoting that.
func checkServer(servers string) error {
	if servers == "" {
		return nil
	}
	for _, u := range strings.Split(servers, ",") {
		if _, err := natsconn.CheckURL(u, false, false, false); err != nil {
			return rejected("%v", err)
		}
	}
	return nil
}

func (s *settings) fromContext(a *app) error {
	path, err := a.contextPath()
	if err != nil {
		return err
	}
	c, err := readContext(path)
	if err != nil {
		return err
	}
	if c == nil {
		if s.server == "" {
			return rejected("no server: run fleet up in another terminal, or say --server and --token (there is no context file %s)", path)
		}
		return rejected("no credentials for %s: say --token, --token-file or --user, or set FLEET_TOKEN", s.server)
	}
	if s.server == "" {
		s.server = c.Server
	}
	if s.server != c.Server {
		return rejected("no credentials for %s: say --token, --token-file or --user; those of %s are for %s and are not sent elsewhere", s.server, path, c.Server)
	}
	s.context = c
	if s.ca == "" {
		s.ca = c.CA
	}
	if s.login.empty() {
		s.login = login{token: c.Token, user: c.User, password: c.Password, from: "the context file's keys"}
		if c.DataUser != "" {
			s.data = login{user: c.DataUser, password: c.DataPassword, from: "the context file's keys"}
		}
	}
	if s.login.empty() {
		return rejected("context file %s has no token and no user; run fleet up again", path)
	}
	return nil
}

// source turns the login for an account into credentials and into the only
// inbox prefix that the broker will let it use.
func (s settings) source(ctx context.Context, account access.Account) (src credentials.Source, inboxPrefix string, err error) {
	l := s.login
	if account == access.Data && !s.data.empty() {
		l = s.data
	}
	if err := l.check(); err != nil {
		return nil, "", err
	}
	if l.user != "" {
		src = credentials.Static(credentials.Credential{User: l.user, Password: l.password})
		return src, command.InboxPrefix(command.UID(l.user)), nil
	}
	if l.tokenFile != "" {
		src, err = credentials.New(credentials.Config{Type: credentials.TypeTokenFile, TokenFile: l.tokenFile, Account: string(account)})
		if err != nil {
			return nil, "", rejected("%v", err)
		}
	} else {
		src = credentials.Static(credentials.Credential{User: string(account), Token: strings.TrimSpace(l.token)})
	}
	cred, err := src.Credential(ctx)
	if err != nil {
		return nil, "", rejected("%v", err)
	}
	user, ok := credentials.TokenUser(cred.Token)
	if !ok {
		return nil, "", rejected("the token that %s give is not an OIDC token (a JWT with iss and sub); see fleet --help", l.from)
	}
	return src, command.InboxPrefix(command.UID(user)), nil
}

// connect signs in to an account, within --timeout.
func (a *app) connect(ctx context.Context, account access.Account, opts ...nats.Option) (*nats.Conn, settings, error) {
	s, err := a.settings()
	if err != nil {
		return nil, s, err
	}
	nc, err := a.dial(ctx, s, account, opts)
	return nc, s, s.context.explain(err)
}

// withData runs act on a connection to the data account, within timeout. The
// broker tells of a missing right beside the request, which would go on waiting
// for its answer: here that ends act, and is the error.
func (a *app) withData(ctx context.Context, timeout time.Duration, act func(context.Context, *nats.Conn) error) error {
	ctx, deny := context.WithCancelCause(ctx)
	defer deny(nil)
	nc, _, err := a.connect(ctx, access.Data, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			deny(&command.Error{Outcome: command.OutcomeDenied, Message: "this identity may not do that; it needs another role", Err: err})
		}
	}))
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = act(ctx, nc)
	var denied *command.Error
	if err != nil && errors.As(context.Cause(ctx), &denied) {
		return denied
	}
	return err
}

// soon lets a person who follows something wait a second or two for a reconnect,
// not twelve: agents spread theirs out because there are so many of them.
func soon() []nats.Option {
	return []nats.Option{nats.ReconnectWait(time.Second), nats.ReconnectJitter(time.Second, time.Second)}
}

func (a *app) dial(ctx context.Context, s settings, account access.Account, opts []nats.Option) (*nats.Conn, error) {
	for _, file := range []string{s.ca, s.cert, s.key} {
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err != nil {
			return nil, rejected("certificate file: %v", err)
		}
	}
	if (s.cert == "") != (s.key == "") {
		return nil, rejected("--cert and --key go together")
	}
	src, inbox, err := s.source(ctx, account)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	type dialed struct {
		nc  *nats.Conn
		err error
	}
	// Connect cannot be interrupted; Ctrl-C must not wait for it. What it still
	// does then ends with the process.
	done := make(chan dialed, 1)
	go func() {
		nc, err := natsconn.Connect(ctx, natsconn.Config{
			URLs: strings.Split(s.server, ","), TLS: natsconn.TLS{CA: s.ca, Cert: s.cert, Key: s.key}, Insecure: s.insecure,
			Credentials: src, InboxPrefix: inbox, Name: "fleet " + version.String(), Logger: a.log,
			EndWhenRefused: true, Options: append(soon(), append(opts, nats.Timeout(a.timeout))...),
		})
		done <- dialed{nc, err}
	}()
	select {
	case d := <-done:
		return d.nc, d.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, &command.Error{Outcome: command.OutcomeFailed, Message: "no broker answered at " + s.server + " within " + a.timeout.String() + "; check the address, or say a longer --timeout"}
		}
		return nil, &command.Error{Outcome: command.OutcomeFailed, Message: "interrupted while connecting to " + s.server}
	}
}
