package stack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

// connect signs in as the admin. The stack closes the connection at the latest.
func (s *Stack) connect(ctx context.Context, account access.Account, name string) (*nats.Conn, error) {
	return s.dial(ctx, s.adminSource(account), s.inboxPrefix(account), name)
}

// DataConn is a new connection of the admin in the data account. The stack
// closes it at the latest.
func (s *Stack) DataConn(ctx context.Context) (*nats.Conn, error) {
	return s.connect(ctx, access.Data, "data")
}

// dial makes a connection that the stack closes at the latest.
func (s *Stack) dial(ctx context.Context, src credentials.Source, inbox, name string, opts ...nats.Option) (*nats.Conn, error) {
	return s.conns.Connect(ctx, natsconn.Config{
		URLs: []string{s.NATSURL()}, TLS: natsconn.TLS{CA: s.tls.ca},
		Credentials: src, InboxPrefix: inbox, Name: name, Logger: s.log,
		Options: append(natsconn.Soon(), opts...),
	})
}

// source is a function as a credentials.Source.
type source func(context.Context) (credentials.Credential, error)

func (f source) Credential(ctx context.Context) (credentials.Credential, error) { return f(ctx) }

func (s *Stack) adminSource(account access.Account) credentials.Source {
	if s.opts.Auth == UserPass {
		user, password := s.UserPassword(account)
		return credentials.Static(credentials.Credential{User: user, Password: password})
	}
	return source(func(context.Context) (credentials.Credential, error) {
		return credentials.Credential{User: string(account), Token: s.AdminToken()}, nil
	})
}

func (s *Stack) inboxPrefix(account access.Account) string {
	if s.opts.Auth == UserPass {
		user, _ := s.UserPassword(account)
		return command.InboxPrefix(command.UID(user))
	}
	return command.InboxPrefix(s.uidOf(adminUser))
}

// InboxPrefix is the only prefix under which the admin may receive replies, for
// other NATS clients.
func (s *Stack) InboxPrefix() string { return s.inboxPrefix(access.Ops) }

// UserPassword is the static user of an account in userpass mode; empty in
// callout mode.
func (s *Stack) UserPassword(account access.Account) (user, password string) {
	if s.opts.Auth != UserPass {
		return "", ""
	}
	switch account {
	case access.Ops:
		return broker.UserOps, s.secrets.Ops
	case access.Data:
		return broker.UserData, s.secrets.Data
	case access.Fleet:
		return broker.UserDevice, s.secrets.Device
	}
	return "", ""
}

// AdminToken is a token with the role fleet-admin that lives for a while yet;
// empty in userpass mode.
func (s *Stack) AdminToken() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.adminToken
}

// renewAdmin makes the first admin token and keeps it fresh until the stack is
// closed.
func (s *Stack) renewAdmin(context.Context) error {
	if err := s.newAdminToken(); err != nil {
		return err
	}
	s.wg.Go(func() {
		tick := time.NewTicker(s.opts.AdminTokenLifetime * 3 / 4)
		defer tick.Stop()
		for {
			select {
			case <-s.ctx.Done():
				return
			case <-tick.C:
			}
			if err := s.newAdminToken(); err != nil {
				s.log.Error("the admin token was not renewed", "error", err)
			}
		}
	})
	return nil
}

func (s *Stack) newAdminToken() error {
	token, err := s.issuer.Mint(adminUser, issuer.MintOptions{Lifetime: s.opts.AdminTokenLifetime})
	if err != nil {
		return fmt.Errorf("admin token: %w", err)
	}
	s.mu.Lock()
	s.adminToken = token
	s.mu.Unlock()
	if s.opts.OnAdminToken != nil {
		s.opts.OnAdminToken(token)
	}
	return nil
}

// Identity is somebody who can sign in.
type Identity struct {
	Token          string // callout mode
	User, Password string // userpass mode
	InboxPrefix    string
	UID            string
}

// String and GoString keep secrets out of messages.
func (i Identity) String() string   { return "identity " + i.UID }
func (i Identity) GoString() string { return i.String() }

// NewIdentity makes a new person with the roles, whose token lives for lifetime
// (0: as those of the issuer). It needs callout mode: static users hold every
// role of their account.
func (s *Stack) NewIdentity(lifetime time.Duration, roles ...access.Role) (Identity, error) {
	if s.issuer == nil {
		return Identity{}, errors.New("people with roles need callout mode")
	}
	s.mu.Lock()
	s.users++
	name := fmt.Sprintf("person-%d", s.users)
	s.mu.Unlock()
	user := issuer.User{Name: name}
	for _, r := range roles {
		user.Roles = append(user.Roles, string(r))
	}
	if err := s.issuer.AddUser(user); err != nil {
		return Identity{}, err
	}
	token, err := s.issuer.Mint(name, issuer.MintOptions{Lifetime: lifetime})
	if err != nil {
		return Identity{}, err
	}
	uid := s.uidOf(name)
	return Identity{Token: token, InboxPrefix: command.InboxPrefix(uid), UID: uid}, nil
}

// ConnectAs connects a new person with the roles, in the account. In userpass
// mode it connects the static user of that account, whatever the roles. The
// stack closes the connection at the latest.
func (s *Stack) ConnectAs(ctx context.Context, account access.Account, roles ...access.Role) (*nats.Conn, error) {
	if s.opts.Auth == UserPass {
		return s.connect(ctx, account, "static user")
	}
	id, err := s.NewIdentity(time.Hour, roles...)
	if err != nil {
		return nil, err
	}
	return s.dial(ctx, credentials.Static(credentials.Credential{User: string(account), Token: id.Token}), id.InboxPrefix, "person")
}
