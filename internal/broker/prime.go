package broker

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// primer works around a data race of nats-server 2.15.2: the first subscription
// below a stream import that maps its subject makes the reverse mapping and keeps
// it in the import without a lock (client.go, addShadowSub: im.rtr). Two devices
// that connect to a new server at once would both do that. One subscription,
// made before anybody else is there, leaves nothing to be made.
//
// It signs in as a user of its own, from inside this process only.
type primer struct{ user, password string }

// addPrimer adds the primer's user to the options of a server.
func addPrimer(opts *server.Options, fleet string) (primer, error) {
	p := primer{user: "primer", password: rand.Text()}
	for _, account := range opts.Accounts {
		if account.Name != fleet {
			continue
		}
		opts.Users = append(opts.Users, &server.User{
			Username: p.user, Password: p.password, Account: account,
			Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Deny: []string{">"}},
				Subscribe: &server.SubjectPermission{Allow: []string{p.subject()}},
			},
			AllowedConnectionTypes: map[string]struct{}{jwt.ConnectionTypeInProcess: {}},
		})
		if opts.AuthCallout != nil {
			opts.AuthCallout.AuthUsers = append(opts.AuthCallout.AuthUsers, p.user)
		}
		return p, nil
	}
	return p, fmt.Errorf("there is no account %s", fleet)
}

func (p primer) subject() string { return command.DesiredStateSubject(p.user) }

func (p primer) run(srv *server.Server) error {
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.UserInfo(p.user, p.password), nats.NoReconnect(), nats.Timeout(readyTimeout))
	if err != nil {
		return err
	}
	defer nc.Close()
	_, err = nc.SubscribeSync(p.subject())
	return errors.Join(err, nc.FlushTimeout(10*time.Second))
}
