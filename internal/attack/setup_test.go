package attack

import (
	"context"
	"flag"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

var update = flag.Bool("update", false, "write the attack table into docs/security.md")

const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// password is that of every static user here.
const password = "secret"

// who is a static user of the tests: a device, or a person with roles.
type who struct {
	name   string
	device string         // for devices
	asks   access.Account // for people
	roles  []access.Role
}

var (
	d1         = who{name: "d1", device: "d1"} // hostile
	d2         = who{name: "d2", device: "d2"} // its victim
	d3         = who{name: "d3", device: "d3"} // honest; used to see that everything before has arrived
	viewer     = who{name: "viewer", asks: access.Ops, roles: []access.Role{access.RoleViewer}}
	logsReader = who{name: "logs", asks: access.Ops, roles: []access.Role{access.RoleLogs}}
	operator   = who{name: "operator", asks: access.Ops, roles: []access.Role{access.RoleOps}} // the victim among people
	shellUser  = who{name: "shell", asks: access.Ops, roles: []access.Role{access.RoleShell}}
	auditor    = who{name: "auditor", asks: access.Ops, roles: []access.Role{access.RoleAuditor}}
	admin      = who{name: "admin", asks: access.Ops, roles: []access.Role{access.RoleAdmin}}
	deployer   = who{name: "deployer", asks: access.Data, roles: []access.Role{access.RoleDeployer}}
	controller = who{name: "controller", asks: access.Data, roles: []access.Role{access.RoleController}}

	everyone = []who{d1, d2, d3, viewer, logsReader, operator, shellUser, auditor, admin, deployer, controller}
)

func (w who) uid() string { return command.UID(w.name) }

func (w who) inbox() string {
	if w.device != "" {
		return command.DeviceInboxPrefix(w.device)
	}
	return command.InboxPrefix(w.uid())
}

func (w who) permissions() access.Permissions {
	if w.device != "" {
		return access.ForDevice(w.device)
	}
	p, err := access.ForPerson(w.asks, w.uid(), w.roles)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", w.name, err))
	}
	return p
}

// variant changes the configuration before the servers start; the tests use it
// to show that an attack is seen where a defence is taken away.
type variant struct {
	config func(text string) string
	user   func(w who, p *access.Permissions)
}

// startServers runs n servers with the accounts of package broker and one
// static user for each of everyone, with the permissions that the callout would
// mint for it.
func startServers(t *testing.T, n int, v variant) []*server.Server {
	t.Helper()
	ports := freePorts(t, n)
	var routes []string
	for _, p := range ports {
		routes = append(routes, fmt.Sprintf("nats-route://127.0.0.1:%d", p))
	}
	var servers []*server.Server
	for i := range n {
		cfg := broker.Config{
			ServerName: fmt.Sprintf("s%d", i), Port: broker.AnyPort, StoreDir: t.TempDir(), SystemPassword: password,
			UserPass: &broker.UserPass{Ops: password, Data: password, Device: password},
		}
		if n > 1 {
			cfg.Cluster = &broker.Cluster{Name: "c", Port: ports[i], Routes: routes}
		}
		text, err := cfg.Render()
		if err != nil {
			t.Fatal(err)
		}
		if v.config != nil {
			text = v.config(text)
		}
		opts := &server.Options{}
		if err := opts.ProcessConfigString(text); err != nil {
			t.Fatal(err)
		}
		opts.NoSigs, opts.NoLog = true, true
		addUsers(opts, v)
		srv, err := server.NewServer(opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
		srv.Start()
		servers = append(servers, srv)
	}
	for _, srv := range servers {
		if !srv.ReadyForConnections(patience) {
			t.Fatal("server is not ready")
		}
		testwait.For(t, patience, "the cluster's JetStream", func() bool {
			return n == 1 || srv.NumRoutes() > 0 && srv.JetStreamIsCurrent()
		})
	}
	return servers
}

func addUsers(opts *server.Options, v variant) {
	accounts := map[string]*server.Account{}
	for _, a := range opts.Accounts {
		accounts[a.Name] = a
	}
	for _, w := range everyone {
		p := w.permissions()
		if v.user != nil {
			v.user(w, &p)
		}
		user := &server.User{
			Username: w.name, Password: password, Account: accounts[access.Accounts{}.Name(p.Account)],
			Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Allow: p.Publish},
				Subscribe: &server.SubjectPermission{Allow: p.Subscribe},
			},
		}
		if p.Responses > 0 {
			user.Permissions.Response = &server.ResponsePermission{MaxMsgs: p.Responses, Expires: access.ReplyLifetime}
		}
		opts.Users = append(opts.Users, user)
	}
}

// freePorts finds n free ports: servers of a cluster must name their routes
// before they start.
func freePorts(t *testing.T, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func provision(t *testing.T, nc *nats.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var err error
	testwait.For(t, patience, "provisioning", func() bool {
		_, err = broker.Provision(ctx, nc, broker.ProvisionOptions{})
		return err == nil || ctx.Err() != nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
