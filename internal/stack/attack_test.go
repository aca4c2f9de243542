package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// The attacks here go against the real agent and the real client, with real
// tokens; package attack makes those that need no more than the accounts.

const (
	hostile = "vm-device-00" // its machine key is in the attacker's hands
	victim  = "vm-device-01" // serves exec, with a handler that counts
)

// arena is a system under attack, with everything it logs.
type arena struct {
	*Stack
	log    *recorder
	agent  *agent.Agent // of the victim
	runs   atomic.Int64 // of exec on the victim
	device *nats.Conn   // signed in as hostile; callout mode only
	ops    *person
}

func newArena(t *testing.T, auth Auth) *arena {
	t.Helper()
	a := &arena{log: &recorder{}}
	logger := slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a.Stack = up(t, Options{Devices: 1, Auth: auth, Logger: logger})
	stateDir, err := a.dir.sub("agents", victim)
	must(t, err)
	creds, err := a.deviceCredentials(victim)
	must(t, err)
	a.agent, err = agent.New(agent.Options{
		DeviceID: victim, StateDir: stateDir, NATS: natsconn.Config{URLs: []string{a.NATSURL()}, Credentials: creds, Options: natsconn.Soon()},
		Handlers: map[command.Verb]agent.Handler{command.VerbExec: agent.HandlerFunc(a.exec)},
		RetryMin: 50 * time.Millisecond, RetryMax: time.Second, DrainTimeout: time.Second, AuditDelay: 10 * time.Millisecond,
		Logger: logger,
	})
	must(t, err)
	a.mu.Lock()
	a.agents[victim] = a.start("agent "+victim, a.agent.Run)
	a.mu.Unlock()
	must(t, a.WaitDevice(t.Context(), victim))
	select { // it answers pings a moment before it knows the time
	case <-a.agent.Ready():
	case <-time.After(patience):
		t.Fatal("the agent does not get ready")
	}
	a.ops = a.person(t, access.Ops, access.RoleOps)
	if auth == Callout {
		a.device = a.signIn(t, "", a.mint(t, deviceUser(hostile), issuer.MintOptions{}), command.DeviceInboxPrefix(hostile))
	}
	return a
}

func (a *arena) exec(_ context.Context, req *agent.Request) (any, error) {
	if _, err := command.DecodeRequest[command.ExecRequest](req.Verb, req.Payload); err != nil {
		return nil, err
	}
	return map[string]int64{"run": a.runs.Add(1)}, nil
}

// recorder keeps a log as text.
type recorder struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

// person is somebody with roles, and a connection.
type person struct {
	*nats.Conn
	Identity
}

func (a *arena) person(t *testing.T, account access.Account, roles ...access.Role) *person {
	t.Helper()
	if a.Auth() == UserPass {
		nc, err := a.ConnectAs(t.Context(), account)
		must(t, err)
		user, _ := a.UserPassword(account)
		return &person{nc, Identity{UID: command.UID(user), InboxPrefix: a.inboxPrefix(account)}}
	}
	id, err := a.NewIdentity(time.Hour, roles...)
	must(t, err)
	return &person{a.signIn(t, string(account), id.Token, id.InboxPrefix), id}
}

func (a *arena) mint(t *testing.T, user string, o issuer.MintOptions) string {
	t.Helper()
	token, err := a.Issuer().Mint(user, o)
	must(t, err)
	return token
}

func (a *arena) signIn(t *testing.T, userField, token, inbox string) *nats.Conn {
	t.Helper()
	nc, err := a.dial(t.Context(), tokenSource(access.Account(userField), token), inbox, "attacker")
	must(t, err)
	return nc
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refusesPublish holds that the broker does not let nc publish there.
func refusesPublish(t *testing.T, nc *nats.Conn, subjects ...string) {
	t.Helper()
	for _, s := range subjects {
		must(t, nc.PublishMsg(&nats.Msg{Subject: s, Data: []byte("{}")}))
		must(t, nc.Flush())
		if err := nc.LastError(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`Violation for Publish to %q`, s)) {
			t.Errorf("publish on %s: %v", s, err)
		}
	}
}

// refusesSubscribe is the same for subscriptions.
func refusesSubscribe(t *testing.T, nc *nats.Conn, subjects ...string) {
	t.Helper()
	for _, s := range subjects {
		sub, err := nc.SubscribeSync(s)
		must(t, err)
		must(t, nc.Flush())
		if err := nc.LastError(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`Violation for Subscription to %q`, s)) {
			t.Errorf("subscribe to %s: %v", s, err)
		}
		_ = sub.Unsubscribe()
	}
}

// command sends a command with exactly these headers and gives the reply, nil
// where none comes within a time in which one would.
func (p *person) command(t *testing.T, device string, verb command.Verb, header nats.Header, payload string) *nats.Msg {
	t.Helper()
	wait := patience
	if header.Get("expect") == "silence" {
		header.Del("expect")
		wait = 300 * time.Millisecond
	}
	reply, err := p.RequestMsg(&nats.Msg{Subject: command.Subject(device, verb), Header: header, Data: []byte(payload)}, wait)
	if errors.Is(err, nats.ErrTimeout) {
		return nil
	}
	must(t, err)
	return reply
}

// outcomeOf is the kind of an error reply, "ok", or "silence".
func outcomeOf(reply *nats.Msg) string {
	switch {
	case reply == nil:
		return "silence"
	case reply.Header.Get(command.HeaderError) != "":
		return reply.Header.Get(command.HeaderError)
	}
	return "ok"
}

// valid is the header of a good exec for the victim.
func (a *arena) valid() nats.Header {
	h := nats.Header{}
	command.RequestHeader{
		RequestID: command.NewRequestID(), Deadline: time.Now().Add(time.Minute), Instance: a.agent.Instance(),
	}.Write(h)
	return h
}

// records are the audit records of the victim that are stored. One that does not
// fit its subject fails the test.
func (a *arena) records(t *testing.T) (all []command.AuditRecord) {
	t.Helper()
	for e, err := range a.Client().Audit(t.Context(), client.AuditFilter{}) {
		if err != nil && e.Raw == nil {
			t.Fatal(err)
		}
		if err != nil && !strings.Contains(err.Error(), "on fleet.audit."+hostile+".") { // what it stores of its own is junk
			t.Error(err)
		}
		if e.Record.DeviceID == victim {
			all = append(all, e.Record)
		}
	}
	return all
}

// awaitRecord waits for a record of the victim.
func (a *arena) awaitRecord(t *testing.T, what string, is func(command.AuditRecord) bool) {
	t.Helper()
	testwait.For(t, patience, "audit record: "+what, func() bool {
		for _, r := range a.records(t) {
			if is(r) {
				return true
			}
		}
		return false
	})
}

// stored is what no attack may change: the streams' settings, what is desired,
// labels, and whose status and heartbeats are whose.
func (a *arena) stored(t *testing.T) string {
	t.Helper()
	nc, err := a.DataConn(t.Context())
	must(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(t, err)
	var out strings.Builder
	for _, name := range []string{access.StreamStatus, access.StreamHeartbeat, access.StreamAudit, access.KVStream(command.DesiredStateBucket), access.KVStream(command.DeviceLabelsBucket)} {
		stream, err := js.Stream(t.Context(), name)
		must(t, err)
		info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(">"))
		must(t, err)
		settings, err := json.Marshal(info.Config)
		must(t, err)
		fmt.Fprintf(&out, "%s %s\n", name, settings)
		for _, id := range []string{hostile, victim} {
			for _, subject := range []string{command.StatusSubject(id), command.HeartbeatSubject(id)} {
				if info.State.Subjects[subject] == 0 {
					continue
				}
				m, err := stream.GetLastMsgForSubject(t.Context(), subject)
				must(t, err)
				var doc struct {
					DeviceID string `json:"device_id"`
				}
				if err := json.Unmarshal(m.Data, &doc); err != nil || doc.DeviceID != id {
					t.Errorf("%s holds %.200s", subject, m.Data)
				}
			}
		}
		if strings.HasPrefix(name, "KV_") {
			fmt.Fprintf(&out, "last %d, %v\n", info.State.LastSeq, info.State.Subjects)
		}
	}
	return out.String()
}

// deliver has the broker deliver the hostile device's own bytes, with headers of
// its own, to subjects in the devices' account: it stores them as an audit record
// of its own, and reads that with the subject as reply.
func (a *arena) deliver(t *testing.T, header nats.Header, payload string, times int, subjects ...string) {
	t.Helper()
	own := command.AuditSubject(hostile, command.VerbResult)
	must(t, a.device.PublishMsg(&nats.Msg{Subject: own, Header: header, Data: []byte(payload)}))
	read := access.DirectGetLast(access.StreamAudit, own)
	testwait.For(t, patience, "the attacker's bytes in the stream", func() bool {
		m, err := a.device.Request(read, nil, patience)
		return err == nil && string(m.Data) == payload
	})
	for range times {
		for _, s := range subjects {
			must(t, a.device.PublishRequest(read, s, nil))
		}
	}
	must(t, a.device.Flush())
}

// attackOn is one row of the tables below.
type attackOn struct {
	name string
	run  func(t *testing.T, a *arena)
}

func (a *arena) try(t *testing.T, rows []attackOn) {
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			before, runs := a.stored(t), a.runs.Load()
			row.run(t, a)
			pings(t, a.Client(), victim)
			if after := a.stored(t); after != before {
				t.Errorf("stored:\n%s\nbefore:\n%s", after, before)
			}
			if n := a.runs.Load() - runs; n != 0 {
				t.Errorf("exec ran %d times", n)
			}
			a.records(t)
		})
	}
}

func hostileDevice(t *testing.T) {
	a := newArena(t, Callout)
	admin := command.UID(command.UserName(a.Issuer().URL(), a.Issuer().UserID(adminUser)))
	perfect := func() nats.Header {
		h := a.valid()
		h["Nats-Request-Info"] = []string{`{"acc":"OPS","user":"root","kind":"Client"}`}
		return h
	}
	a.try(t, []attackOn{
		{"publishes as others, or what no device may", func(t *testing.T, a *arena) {
			refusesPublish(t, a.device,
				command.StatusSubject(victim), command.HeartbeatSubject(victim), command.SeenSubject(victim), command.SeenSubject(hostile),
				command.AuditSubject(victim, command.VerbExec), command.SessionSubject(victim, a.ops.UID, "sid"),
				command.DesiredStateSubject(victim), command.DesiredStateSubject(hostile), command.DeviceLabelsSubject(hostile),
				command.Subject(victim, command.VerbExec), command.Subject(hostile, command.VerbPing),
				command.SessionControlSubject(victim, a.ops.UID, "sid", command.OpIn),
				command.DeviceInboxPrefix(victim)+".x", a.ops.InboxPrefix+".x", "_R_.x.y",
				"$JS.API.STREAM.DELETE.AUDIT", "$JS.API.STREAM.PURGE.AUDIT", "$JS.API.CONSUMER.CREATE.AUDIT", "$JS.API.STREAM.NAMES",
				"$SYS.REQ.USER.AUTH", "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.FLEET.CONNZ")
		}},
		{"reads what others have", func(t *testing.T, a *arena) {
			refusesPublish(t, a.device,
				access.DirectGetLast(access.KVStream(command.DesiredStateBucket), command.DesiredStateSubject(victim)),
				access.DirectGetLast(access.StreamAudit, command.AuditSubject(victim, command.VerbPing)),
				access.DirectGet(access.StreamAudit), access.DirectGet(access.StreamStatus), access.DirectGet(access.KVStream(command.DesiredStateBucket)))
			refusesSubscribe(t, a.device,
				command.Subscription(victim), command.DesiredStateSubject(victim), command.SeenSubject(victim), command.DeviceInboxPrefix(victim)+".>",
				a.ops.InboxPrefix+".>", command.InboxPrefix(admin)+".>", command.SessionSubject(victim, a.ops.UID, "*"), command.StatusSubject(hostile),
				">", "*", "fleet.>", "device-commands.>", "_INBOX.>", "_INBOX.*.>", "_R_.>", "$SYS.>", "$SYS.REQ.USER.AUTH", "$JS.>", "$KV.>")
		}},
		{"has a command of its own making delivered to another device", func(t *testing.T, a *arena) {
			for _, h := range []nats.Header{nil, a.valid(), perfect(), {"nats-request-info": perfect()["Nats-Request-Info"]}} {
				seen := len(a.records(t))
				a.deliver(t, h, `{"argv":["true"],"host":true}`, 1,
					command.Subject(victim, command.VerbExec), command.Subject(victim, command.VerbPing), command.Subject(victim, "reboot"),
					command.SessionControlSubject(victim, a.ops.UID, "sid", command.OpCancel), "device-commands."+victim+".a.b.c")
				testwait.For(t, patience, "five denials in the audit", func() bool { return len(a.records(t)) >= seen+5 })
				for _, r := range a.records(t)[seen:] {
					if r.Kind != command.KindDenied || r.Reason == "" || r.Caller != (command.AuditCaller{}) || command.AuditVerb(r.Verb) != command.AuditOther {
						t.Errorf("record %+v", r)
					}
				}
			}
			if strings.Contains(a.log.String(), "a reply could not be sent") {
				t.Error("the victim tried to answer")
			}
		}},
		{"has desired state, and a heartbeat of a second agent, delivered to another device", func(t *testing.T, a *arena) {
			a.deliver(t, nats.Header{"KV-Operation": {"DEL"}}, `{"schema":1,"instance":"another","device_id":"vm-device-01","deployments":{}}`, 50,
				command.DesiredStateSubject(victim), command.SeenSubject(victim))
			for range 3 {
				if r, err := a.Client().Ping(t.Context(), victim); err != nil || r.DesiredRevision != 0 {
					t.Errorf("%+v, %v", r, err)
				}
			}
		}},
		{"wipes the audit history of another device by volume", func(t *testing.T, a *arena) {
			header := a.valid()
			if got := outcomeOf(a.ops.command(t, victim, command.VerbExec, header, `{"argv":["true"],"host":true}`)); got != "ok" {
				t.Fatal(got)
			}
			a.runs.Add(-1)
			honest := func(r command.AuditRecord) bool { return r.RequestID == header.Get(command.HeaderRequestID) }
			a.awaitRecord(t, "the honest exec", honest)
			a.deliver(t, perfect(), `{}`, 1200, command.Subject(victim, command.VerbExec))
			after := a.valid() // behind the flood, in the audit too
			if got := outcomeOf(a.ops.command(t, victim, command.VerbPing, after, "")); got != "ok" {
				t.Errorf("ping after the flood: %s", got)
			}
			a.awaitRecord(t, "the ping", func(r command.AuditRecord) bool { return r.RequestID == after.Get(command.HeaderRequestID) })
			a.awaitRecord(t, "the honest exec, after the flood", honest)
		}},
		{"answers twice, and where it was not asked", func(t *testing.T, a *arena) {
			must(t, a.StopAgent(hostile))
			stolen := make(chan string, 8)
			sub, err := a.device.Subscribe(command.Subscription(hostile), func(m *nats.Msg) {
				_ = m.Respond([]byte(`{"device_id":"` + victim + `"}`))
				_ = m.Respond([]byte(`{"device_id":"` + hostile + `"}`))
				stolen <- m.Reply
			})
			must(t, err)
			must(t, a.device.Flush())
			// The client does not take one device's word for another's.
			_, err = a.Client().Ping(t.Context(), hostile)
			if !errors.Is(err, client.ErrBadReply) {
				t.Errorf("an answer in another's name: %v", err)
			}
			refusesPublish(t, a.device, <-stolen)
			must(t, sub.Unsubscribe())
			must(t, a.AddAgent(t.Context(), hostile, hostile))
			pings(t, a.Client(), hostile)
		}},
		{"sends what a client cannot digest", func(t *testing.T, a *arena) {
			must(t, a.StopAgent(hostile))
			var answer atomic.Pointer[nats.Msg]
			sub, err := a.device.Subscribe(command.Subscription(hostile), func(m *nats.Msg) { _ = m.RespondMsg(answer.Load()) })
			must(t, err)
			must(t, a.device.Flush())
			for _, m := range []*nats.Msg{
				{}, {Data: []byte("{")}, {Data: []byte("null")}, {Data: []byte("[]")}, {Data: []byte(strings.Repeat("[", 100_000))},
				{Data: bytes.Repeat([]byte{'x'}, command.MaxDocument+1)},
				{Header: nats.Header{command.HeaderError: {"ok"}}}, {Header: nats.Header{command.HeaderError: {"\x1b[31m", "busy"}}, Data: []byte("{}")},
				{Header: nats.Header{"Status": {"999"}}}, {Data: []byte(`{"device_id":"` + hostile + `","uptime_s":-1}`)},
			} {
				answer.Store(m)
				reply, err := a.Client().Ping(t.Context(), hostile)
				if outcome(err) != command.OutcomeFailed {
					t.Errorf("%v %.40q: %+v, %v", m.Header, m.Data, reply, err)
				}
			}
			must(t, sub.Unsubscribe())
			must(t, a.AddAgent(t.Context(), hostile, hostile))
			pings(t, a.Client(), hostile)
		}},
	})
}

func beyondTheRole(t *testing.T) {
	a := newArena(t, Callout)
	viewer := a.person(t, access.Ops, access.RoleViewer)
	deployer := a.person(t, access.Data, access.RoleDeployer)
	a.try(t, []attackOn{
		{"viewer: verbs of other roles", func(t *testing.T, a *arena) {
			for _, verb := range []command.Verb{command.VerbExec, command.VerbShell, command.VerbLogs, command.VerbResult, "reboot"} {
				refusesPublish(t, viewer.Conn, command.Subject(victim, verb))
			}
			refusesPublish(t, viewer.Conn, command.SessionControlSubject(victim, a.ops.UID, "sid", command.OpIn),
				command.SessionControlSubject(victim, viewer.UID, "sid", command.OpIn))
		}},
		{"operator: shell, and other people's sessions", func(t *testing.T, a *arena) {
			refusesPublish(t, a.ops.Conn, command.Subject(victim, command.VerbShell), command.SessionControlSubject(victim, viewer.UID, "sid", command.OpIn))
			refusesSubscribe(t, a.ops.Conn, command.SessionSubject(victim, viewer.UID, "*"), viewer.InboxPrefix+".>", "fleet.audit.>")
		}},
		{"viewer: the answer of a device as desired state, report, command, answer to somebody", func(t *testing.T, a *arena) {
			honest := a.person(t, access.Ops, access.RoleOps)
			inbox, err := honest.SubscribeSync(honest.InboxPrefix + ".known")
			must(t, err)
			must(t, honest.Flush())
			seen := len(a.records(t))
			replies := []string{
				command.DesiredStateSubject(victim), command.DesiredStateSubject(hostile), command.DeviceLabelsSubject(victim),
				command.StatusSubject(victim), command.HeartbeatSubject(victim), command.SeenSubject(victim), command.AuditSubject(victim, command.VerbExec),
				command.Subject(victim, command.VerbExec), command.Subject(hostile, command.VerbPing),
				command.SessionControlSubject(victim, a.ops.UID, "sid", command.OpCancel), command.DeviceInboxPrefix(victim) + ".x",
				"$JS.API.STREAM.DELETE.AUDIT", "$JS.API.STREAM.PURGE.AUDIT", "$SYS.REQ.USER.AUTH", honest.InboxPrefix + ".known",
			}
			for _, reply := range replies {
				must(t, viewer.PublishRequest(command.Subject(victim, command.VerbPing), reply, nil))
				for _, stream := range []string{access.StreamStatus, access.StreamHeartbeat, access.KVStream(command.DeviceLabelsBucket)} {
					must(t, viewer.PublishRequest(access.DirectGet(stream), reply, []byte(`{"last_by_subj":"`+command.StatusSubject(hostile)+`"}`)))
				}
			}
			must(t, viewer.Flush())
			// The agent answers each once; the broker lets none of the answers do harm.
			// Records of others' earlier pings may still be on their way.
			fromViewer := func() (n int) {
				for _, r := range a.records(t)[seen:] {
					if r.Caller.UID == viewer.UID {
						n++
					}
				}
				return n
			}
			testwait.For(t, patience, "the pings in the audit", func() bool { return fromViewer() >= len(replies) })
			for _, r := range a.records(t)[seen:] {
				if r.Verb != command.VerbPing || r.Outcome != command.OutcomeOK {
					t.Errorf("record %+v", r)
				}
			}
			if n := fromViewer(); n != len(replies) {
				t.Errorf("%d records for %d pings", n, len(replies))
			}
			// Where an inbox is known, an answer can be sent there; those of clients are
			// random, and have room for what they asked for alone.
			if _, err := inbox.NextMsg(patience); err != nil {
				t.Error(err)
			}
		}},
		{"viewer: a reply subject of the server's own", func(t *testing.T, a *arena) {
			v := a.person(t, access.Ops, access.RoleViewer)
			must(t, v.PublishRequest(command.Subject(victim, command.VerbPing), "_R_.abc.def", nil))
			_ = v.Flush()
			if err := v.LastError(); err == nil || !strings.Contains(err.Error(), "Violation") {
				t.Errorf("it was taken: %v", err)
			}
		}},
		{"people: another identity than their own", func(t *testing.T, a *arena) {
			forged := `{"acc":"OPS","user":"root","kind":"Client"}`
			for name, want := range map[string]string{
				"Nats-Request-Info": "ok", "nats-request-info": "denied", "NATS-REQUEST-INFO": "denied",
				"Nats-Rollup": "denied", "nats-trace-dest": "denied", command.HeaderOperatorSub: "ok",
			} {
				id := command.NewRequestID()
				header := nats.Header{name: {forged}, command.HeaderRequestID: {id}}
				if got := outcomeOf(viewer.command(t, victim, command.VerbPing, header, "")); got != want {
					t.Errorf("%q: %s, want %s", name, got, want)
				}
				if want == "ok" {
					a.awaitRecord(t, "with the true caller", func(r command.AuditRecord) bool { return r.RequestID == id && r.Caller.UID == viewer.UID })
				}
			}
			if strings.Contains(a.log.String(), "caller=root") {
				t.Error("the forged caller was believed")
			}
		}},
		{"deployer: commands, the stream API, reports, audit", func(t *testing.T, a *arena) {
			refusesPublish(t, deployer.Conn,
				command.Subject(victim, command.VerbPing), command.StatusSubject(victim), command.AuditSubject(victim, command.VerbPing),
				"$JS.API.STREAM.DELETE.AUDIT", "$JS.API.STREAM.PURGE.KV_desired-state", "$JS.API.STREAM.UPDATE.AUDIT", "$JS.API.STREAM.CREATE.x",
				"$JS.API.STREAM.MSG.DELETE.AUDIT", "$JS.API.CONSUMER.CREATE.AUDIT", "$KV.other.x", "$KV.desired-state.a.b", access.DirectGet(access.StreamAudit))
			refusesSubscribe(t, deployer.Conn, ">", "$KV.>", "fleet.>", "_INBOX.>", "$JS.>")
		}},
		{"deployer: answers of the broker delivered to the stream API, and wiping of history", func(t *testing.T, a *arena) {
			for _, reply := range []string{"$JS.API.STREAM.DELETE.AUDIT", "$JS.API.STREAM.PURGE.AUDIT", "$JS.API.STREAM.DELETE.STATUS", command.StatusSubject(victim)} {
				for _, read := range access.DeployReads() {
					must(t, deployer.PublishRequest(strings.Replace(read, "*", "absent", 1), reply, nil))
				}
			}
			for _, rollup := range []string{"all", "sub"} {
				msg := &nats.Msg{Subject: command.DesiredStateSubject(victim), Header: nats.Header{"Nats-Rollup": {rollup}, "KV-Operation": {"PURGE"}}}
				ack, err := deployer.RequestMsg(msg, patience)
				must(t, err)
				if !bytes.Contains(ack.Data, []byte(`"error"`)) {
					t.Errorf("rollup %s: %s", rollup, ack.Data)
				}
			}
		}},
		{"everyone: the callout's requests, with other people's tokens in them", func(t *testing.T, a *arena) {
			for _, p := range []*person{viewer, deployer, a.person(t, access.Ops, access.RoleAdmin), a.person(t, access.Data, access.RoleAdmin), a.person(t, access.Data, access.RoleController)} {
				refusesSubscribe(t, p.Conn, "$SYS.REQ.USER.AUTH", "$SYS.>", "$SYS.REQ.USER.*")
				refusesPublish(t, p.Conn, "$SYS.REQ.USER.AUTH", "$SYS.REQ.CLAIMS.UPDATE")
			}
		}},
	})
}

// malformedRequests is what a caller with the role for exec may
// try: each row is a command and how it must end, and whether it runs.
func malformedRequests(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		a := newArena(t, auth)
		const good = `{"argv":["true"],"host":true}`
		set := func(pairs ...string) func(nats.Header) {
			return func(h nats.Header) {
				for i := 0; i < len(pairs); i += 2 {
					delete(h, pairs[i])
					if pairs[i+1] != "" {
						h[pairs[i]] = strings.Split(pairs[i+1], "|")
					}
				}
			}
		}
		at := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339Nano) }
		id := command.NewRequestID
		for _, row := range []struct {
			name    string
			header  func(nats.Header)
			payload string
			want    string
			runs    int64
		}{
			{"good", set(), good, "ok", 1},
			{"no request id", set(command.HeaderRequestID, ""), good, "bad_request", 0},
			{"no deadline", set(command.HeaderDeadline, ""), good, "bad_request", 0},
			{"no instance", set(command.HeaderInstance, ""), good, "bad_request", 0},
			{"another instance", set(command.HeaderInstance, "other", "expect", "silence"), good, "silence", 0},
			{"deadline long past", set(command.HeaderDeadline, at(-time.Hour)), good, "expired", 0},
			{"deadline just past", set(command.HeaderDeadline, at(-time.Millisecond)), good, "expired", 0},
			{"deadline at the beginning of time", set(command.HeaderDeadline, "0001-01-01T00:00:00Z"), good, "bad_request", 0},
			{"deadline in more than 24 h", set(command.HeaderDeadline, at(24*time.Hour+time.Minute)), good, "bad_request", 0},
			{"deadline at the end of time", set(command.HeaderDeadline, "9999-12-31T23:59:59Z"), good, "bad_request", 0},
			{"deadline in another zone", set(command.HeaderDeadline, "2099-01-01T00:00:00+14:00"), good, "bad_request", 0},
			{"deadline given twice", set(command.HeaderDeadline, at(-time.Hour)+"|"+at(time.Minute)), good, "bad_request", 0},
			{"request id given twice", set(command.HeaderRequestID, id()+"|"+id()), good, "bad_request", 0},
			{"request id in capitals", set(command.HeaderRequestID, strings.ToUpper(id())), good, "bad_request", 0},
			{"header names in another case", set(command.HeaderDeadline, "", "x-harmony-deadline", at(time.Minute)), good, "bad_request", 0},
			{"two spellings of a header, of which the exact one counts", set("x-harmony-deadline", at(-time.Hour)), good, "ok", 1},
			{"protocol of the future", set(command.HeaderProtocol, "99"), good, "bad_request", 0},
			{"protocol 0", set(command.HeaderProtocol, "0"), good, "bad_request", 0},
			{"oversize payload", set(), `{"argv":["` + strings.Repeat("x", command.MaxDocument) + `"]}`, "bad_request", 0},
			{"half an object", set(), `{"argv":[`, "bad_request", 0},
			{"two objects", set(), good + good, "bad_request", 0},
			{"an array", set(), `[]`, "bad_request", 0},
			{"no UTF-8", set(), "{\"argv\":[\"\xff\"]}", "bad_request", 0},
			{"a field twice", set(), `{"argv":["true"],"argv":["rm"]}`, "bad_request", 0},
			{"a field in another case", set(), `{"Argv":["true"]}`, "bad_request", 0},
			{"an unknown field", set(), `{"argv":["true"],"sudo":true}`, "bad_request", 0},
			{"deep nesting", set(), `{"argv":` + strings.Repeat("[", 50_000) + `}`, "bad_request", 0},
		} {
			before := a.runs.Load()
			header := a.valid()
			row.header(header)
			if got := outcomeOf(a.ops.command(t, victim, command.VerbExec, header, row.payload)); got != row.want {
				t.Errorf("%s: %s, want %s", row.name, got, row.want)
			}
			if n := a.runs.Load() - before; n != row.runs {
				t.Errorf("%s: ran %d times, want %d", row.name, n, row.runs)
			}
		}

		header, runs := a.valid(), a.runs.Load()
		first := a.ops.command(t, victim, command.VerbExec, header, good)
		again := a.ops.command(t, victim, command.VerbExec, header, good)
		if outcomeOf(first) != "ok" || first.Header.Get(command.HeaderReplayed) != "" || again.Header.Get(command.HeaderReplayed) != "true" ||
			!bytes.Equal(first.Data, again.Data) || a.runs.Load() != runs+1 {
			t.Errorf("%v %s, then %v %s", first.Header, first.Data, again.Header, again.Data)
		}
		if got := outcomeOf(a.ops.command(t, victim, command.VerbExec, header, `{"argv":["false"],"host":true}`)); got != "bad_request" {
			t.Errorf("the same id for another payload: %s", got)
		}
		if got := outcomeOf(a.ops.command(t, victim, command.VerbPing, header, good)); got != "bad_request" {
			t.Errorf("the same id for another verb: %s", got)
		}
		late := nats.Header{}
		for k, v := range header {
			late[k] = v
		}
		late[command.HeaderDeadline] = []string{at(-time.Second)}
		// It ran, so that "expired: nothing ran" would be a lie.
		if reply := a.ops.command(t, victim, command.VerbExec, late, good); reply.Header.Get(command.HeaderReplayed) != "true" || !bytes.Equal(reply.Data, first.Data) {
			t.Errorf("replay after the deadline: %v %s", reply.Header, reply.Data)
		}
		if auth == UserPass || a.runs.Load() != runs+1 {
			return // all people are one caller there
		}
		// Somebody else's request id gives neither their answer nor blocks it.
		other := a.person(t, access.Ops, access.RoleOps)
		reply := other.command(t, victim, command.VerbExec, header, good)
		if outcomeOf(reply) != "ok" || reply.Header.Get(command.HeaderReplayed) != "" || bytes.Equal(reply.Data, first.Data) || a.runs.Load() != runs+2 {
			t.Errorf("another caller with the same id: %v %s", reply.Header, reply.Data)
		}
	})
}
