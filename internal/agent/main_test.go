package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/brokertime"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const (
	patience = 10 * time.Second
	password = "hunter2-hunter2"
)

func TestMain(m *testing.M) {
	if os.Getenv(childURL) != "" {
		if err := runChild(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// world is a broker in userpass mode with its streams, and connections for an
// operator and a deployer.
type world struct {
	t     testing.TB
	cfg   broker.Config
	srv   *broker.Server
	ops   *nats.Conn
	data  *nats.Conn
	clock brokertime.Clock
	log   *syncbuf.Buffer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, log: &syncbuf.Buffer{}}
	w.cfg = broker.Config{
		Port: broker.AnyPort, StoreDir: t.TempDir(), SystemPassword: password,
		UserPass: &broker.UserPass{Ops: password, Data: password, Device: password},
	}
	w.startServer()
	t.Cleanup(func() { w.srv.Close() })
	w.ops, w.data = w.dial(broker.UserOps), w.dial(broker.UserData)
	if _, err := w.clock.Sync(t.Context(), w.ops); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.Provision(t.Context(), w.data, broker.ProvisionOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if strings.Contains(w.log.String(), password) {
			t.Error("the log shows a password")
		}
	})
	return w
}

// Users that no role makes, to play what the roles keep out.
const (
	userWide    = "wide"    // in OPS, may do anything there
	userInsider = "insider" // in FLEET, may do anything there
	userOther   = "other"   // in FLEET, is the device "other"
)

func (w *world) startServer() {
	w.t.Helper()
	text, err := w.cfg.Render()
	if err != nil {
		w.t.Fatal(err)
	}
	opts := &natsserver.Options{}
	if err := opts.ProcessConfigString(text); err != nil {
		w.t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog = true, true
	accounts := map[string]*natsserver.Account{}
	for _, a := range opts.Accounts {
		accounts[a.Name] = a
	}
	other := access.ForDevice(userOther)
	opts.Users = append(opts.Users,
		&natsserver.User{Username: userWide, Password: password, Account: accounts["OPS"]},
		&natsserver.User{Username: userInsider, Password: password, Account: accounts["FLEET"]},
		&natsserver.User{Username: userOther, Password: password, Account: accounts["FLEET"], Permissions: &natsserver.Permissions{
			Publish:   &natsserver.SubjectPermission{Allow: other.Publish},
			Subscribe: &natsserver.SubjectPermission{Allow: other.Subscribe},
		}},
	)
	ns, err := natsserver.NewServer(opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.srv = &broker.Server{Server: ns}
	ns.Start()
	if !ns.ReadyForConnections(patience) {
		w.t.Fatal("the server is not ready")
	}
	w.cfg.Port = ns.Addr().(*net.TCPAddr).Port // agents know no other
}

// dial connects a static user, reconnecting fast.
func (w *world) dial(user string) *nats.Conn {
	w.t.Helper()
	nc, err := natsconn.Connect(context.Background(), natsconn.Config{
		URLs: []string{w.srv.ClientURL()}, InboxPrefix: command.InboxPrefix(command.UID(user)),
		Credentials: credentials.Static(credentials.Credential{User: user, Password: password}),
		Options:     fastReconnect(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	return nc
}

func fastReconnect() []nats.Option {
	return []nats.Option{nats.ReconnectWait(10 * time.Millisecond), nats.ReconnectJitter(5*time.Millisecond, 5*time.Millisecond)}
}

// options are those of an agent with every interval shrunk.
func (w *world) options(id string) Options {
	return Options{
		DeviceID: id, StateDir: w.t.TempDir(), Version: "0.0.0-test",
		NATS: natsconn.Config{
			URLs:        []string{w.srv.ClientURL()},
			Credentials: credentials.Static(credentials.Credential{User: broker.UserDevice, Password: password}),
			Options:     fastReconnect(),
		},
		HeartbeatInterval: 100 * time.Millisecond, AuditDelay: 10 * time.Millisecond, RenewOverlap: 20 * time.Millisecond,
		RetryMin: 10 * time.Millisecond, RetryMax: 100 * time.Millisecond, DrainTimeout: 5 * time.Second,
		Reconcile: reconcile.Options{Resync: 200 * time.Millisecond, BackoffMin: 10 * time.Millisecond},
		Logger:    slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// running is an agent that runs.
type running struct {
	*Agent
	t    testing.TB
	stop func() // and wait
}

// launch runs an agent without waiting for it to be ready.
func launch(t testing.TB, o Options) *running {
	t.Helper()
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	r := &running{Agent: a, t: t}
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * patience):
			t.Error("the agent does not stop")
		}
	})
	t.Cleanup(r.stop)
	return r
}

func start(t testing.TB, o Options) *running {
	t.Helper()
	r := launch(t, o)
	r.awaitReady()
	return r
}

func (r *running) awaitReady() {
	r.t.Helper()
	select {
	case <-r.Ready():
	case <-time.After(patience):
		r.t.Fatal("the agent does not take commands")
	}
}

// ask sends a command and gives its reply.
func (w *world) ask(device string, verb command.Verb, h command.RequestHeader, payload string) (*nats.Msg, error) {
	w.t.Helper()
	msg := &nats.Msg{Subject: command.Subject(device, verb), Header: nats.Header{}, Data: []byte(payload)}
	h.Write(msg.Header)
	return w.ops.RequestMsg(msg, patience)
}

// must gives the reply of a command that was answered, as an error reply or not.
func (w *world) must(device string, verb command.Verb, h command.RequestHeader, payload string) *nats.Msg {
	w.t.Helper()
	reply, err := w.ask(device, verb, h, payload)
	if err != nil {
		w.t.Fatalf("%s %s: %v", verb, device, err)
	}
	return reply
}

// kindOf is the error kind of a reply, empty for success.
func kindOf(reply *nats.Msg) command.Kind {
	if e, ok := command.DecodeError(reply.Header, reply.Data); ok {
		return e.Kind
	}
	return ""
}

func (w *world) ping(device string) command.PingReply {
	w.t.Helper()
	reply, err := command.DecodeReply[command.PingReply](func() (map[string][]string, []byte) {
		m := w.must(device, command.VerbPing, command.RequestHeader{}, "")
		return m.Header, m.Data
	}())
	if err != nil {
		w.t.Fatal(err)
	}
	return reply
}

// change is the header of a verb that changes something.
func (w *world) change(a *Agent) command.RequestHeader {
	w.t.Helper()
	now, ok := w.clock.Earliest()
	if !ok {
		w.t.Fatal("the test does not know the time")
	}
	return command.RequestHeader{RequestID: command.NewRequestID(), Deadline: now.Add(time.Minute), Instance: a.Instance()}
}

// awaitData waits until the deployer is connected and the streams are there.
func (w *world) awaitData() {
	w.t.Helper()
	testwait.For(w.t, patience, "the streams", func() bool {
		msg, err := w.data.Request("$JS.API.STREAM.INFO."+access.KVStream(command.DesiredStateBucket), nil, time.Second)
		return err == nil && strings.Contains(string(msg.Data), `"config"`)
	})
}

// last is the last message stored on subject, nil if there is none.
func (w *world) last(stream, subject string) *nats.Msg {
	w.t.Helper()
	msg, err := w.data.Request("$JS.API.DIRECT.GET."+stream, []byte(`{"last_by_subj":"`+subject+`"}`), patience)
	if err != nil || msg.Header.Get("Status") != "" {
		return nil
	}
	return msg
}

func document[T command.Document](t testing.TB, msg *nats.Msg) T {
	t.Helper()
	doc, err := command.DecodeDocument[T](msg.Data)
	if err != nil {
		t.Fatalf("%v in %s", err, msg.Data)
	}
	return doc
}

func (w *world) status(device string) (command.Status, bool) {
	w.t.Helper()
	msg := w.last(access.StreamStatus, command.StatusSubject(device))
	if msg == nil {
		return command.Status{}, false
	}
	return document[command.Status](w.t, msg), true
}

// awaitStatus waits for a stored status that satisfies cond.
func (w *world) awaitStatus(device, what string, cond func(command.Status) bool) command.Status {
	w.t.Helper()
	var last command.Status
	testwait.For(w.t, patience, "status of "+device+": "+what, func() bool {
		s, ok := w.status(device)
		last = s
		return ok && cond(s)
	})
	return last
}

func condition(s command.Status, kind string) bool {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return false
}

// audit is every stored audit record of the device, in the order of storage.
func (w *world) audit(device string) []stored {
	w.t.Helper()
	var all []stored
	for seq := uint64(1); ; seq++ {
		body, _ := json.Marshal(map[string]any{"seq": seq, "next_by_subj": "fleet.audit." + device + ".*"})
		msg, err := w.data.Request("$JS.API.DIRECT.GET."+access.StreamAudit, body, patience)
		if err != nil {
			w.t.Fatal(err)
		}
		if msg.Header.Get("Status") != "" {
			return all
		}
		var meta nats.Header = msg.Header
		if err := json.Unmarshal([]byte(meta.Get("Nats-Sequence")), &seq); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, stored{document[command.AuditRecord](w.t, msg), command.AuditHash(msg.Data), msg.Header.Get("Nats-Subject")})
	}
}

type stored struct {
	command.AuditRecord
	hash, subject string
}

// awaitAudit waits until n records of the device are stored.
func (w *world) awaitAudit(device string, n int) []stored {
	w.t.Helper()
	var all []stored
	testwait.For(w.t, patience, "audit records", func() bool {
		all = w.audit(device)
		return len(all) >= n
	})
	return all
}

// checkChain fails the test unless records follow each other without a gap.
func checkChain(t testing.TB, records []stored) {
	t.Helper()
	prev, seq := "", map[string]uint64{}
	for i, r := range records {
		if r.Prev != prev {
			t.Errorf("record %d (%s %d): prev does not match", i, r.Instance, r.Seq)
		}
		if r.Seq != seq[r.Instance]+1 {
			t.Errorf("record %d: seq %d after %d", i, r.Seq, seq[r.Instance])
		}
		prev, seq[r.Instance] = r.hash, r.Seq
	}
}
