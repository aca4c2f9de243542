package session_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/session"
	"github.com/harmony-fleet/fleet/internal/broker"
)

const (
	patience = 20 * time.Second
	device   = "vm-device-00"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a real broker with a device that serves sessions of sources which the
// test gives, and a caller.
type rig struct {
	t       testing.TB
	cfg     broker.Config
	srv     *broker.Server
	m       *session.Manager
	conn    atomic.Pointer[nats.Conn]
	c       *client.Client
	ops     *nats.Conn
	source  func(ctx context.Context, s *session.Session, r command.LogsRequest) session.Result
	ended   chan session.Ended
	foreign atomic.Int32 // control messages that were refused
}

func newRig(t testing.TB, o session.Options, source func(context.Context, *session.Session, command.LogsRequest) session.Result) *rig {
	t.Helper()
	r := &rig{t: t, source: source, ended: make(chan session.Ended, 1024)}
	r.cfg = broker.Config{Port: broker.AnyPort, StoreDir: t.TempDir(), UserPass: &broker.UserPass{Ops: "o", Data: "d", Device: "v"}}
	r.startServer()
	t.Cleanup(func() { r.srv.Close() })
	o.Device, o.Conn = device, r.conn.Load
	r.m = session.New(o)
	r.connectDevice()
	t.Cleanup(func() {
		r.m.Close()
		if nc := r.conn.Load(); nc != nil {
			nc.Close()
		}
	})
	r.ops = r.dial(broker.UserOps, "o", command.InboxPrefix(command.UID(broker.UserOps)))
	r.c = r.client(r.ops)
	return r
}

func (r *rig) client(nc *nats.Conn) *client.Client {
	r.t.Helper()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (r *rig) startServer() {
	r.t.Helper()
	srv, err := broker.Start(context.Background(), r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.srv = srv
	r.cfg.Port = srv.Addr().(*net.TCPAddr).Port
}

func (r *rig) dial(user, password, inbox string) *nats.Conn {
	r.t.Helper()
	nc, err := nats.Connect(r.srv.ClientURL(), nats.UserInfo(user, password), nats.CustomInboxPrefix(inbox),
		nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(time.Millisecond, time.Millisecond), nats.MaxReconnects(-1),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(nc.Close)
	return nc
}

// connectDevice gives the device a connection of its own, as at its start or
// when its connection is renewed.
func (r *rig) connectDevice() *nats.Conn {
	r.t.Helper()
	nc := r.dial(broker.UserDevice, "v", command.DeviceInboxPrefix(device))
	nc.SetReconnectHandler(func(*nats.Conn) { r.m.Connected() }) // as the agent does
	if _, err := nc.Subscribe(command.Subscription(device), r.handle); err != nil {
		r.t.Fatal(err)
	}
	if err := nc.FlushTimeout(patience); err != nil {
		r.t.Fatal(err)
	}
	r.conn.Store(nc)
	return nc
}

// caller is who the broker says sent the message.
func caller(msg *nats.Msg) string {
	var info struct {
		User string `json:"user"`
	}
	_ = json.Unmarshal([]byte(msg.Header.Get("Nats-Request-Info")), &info)
	return command.UID(info.User)
}

func (r *rig) handle(msg *nats.Msg) {
	target, err := command.ParseSubject(msg.Subject)
	if err != nil {
		return
	}
	if target.Verb == "" {
		if r.m.Control(caller(msg), target, msg.Header, msg.Data) != nil {
			r.foreign.Add(1)
		}
		return
	}
	reply := &nats.Msg{Header: nats.Header{}}
	s, request, err := r.open(msg)
	if err != nil {
		var e *command.Error
		if !errors.As(err, &e) {
			e = command.NewError(command.KindInternal, "%v", err)
		}
		reply.Data = command.EncodeError(reply.Header, e)
	} else {
		s.Serve(func(ctx context.Context) session.Result { return r.source(ctx, s, request) }, func(e session.Ended) { r.ended <- e })
		reply.Data, _ = json.Marshal(command.SessionReply{Session: request.Session.ID})
	}
	_ = msg.RespondMsg(reply)
}

func (r *rig) open(msg *nats.Msg) (*session.Session, command.LogsRequest, error) {
	request, err := command.DecodeRequest[command.LogsRequest](command.VerbLogs, msg.Data)
	if err != nil {
		return nil, request, err
	}
	s, err := r.m.Open(session.Open{UID: caller(msg), Session: *request.Session})
	return s, request, err
}

// awaitEnd is how the source of the next session ended.
func (r *rig) awaitEnd() session.Ended {
	r.t.Helper()
	select {
	case e := <-r.ended:
		return e
	case <-time.After(patience):
		r.t.Fatal("no session ended")
		return session.Ended{}
	}
}

// pattern is a reader of n bytes, each of which depends on its place.
type pattern struct{ at, n int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.n {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.n-p.at))
	for i := range b[:n] {
		b[i] = byteAt(p.at + int64(i))
	}
	p.at += int64(n)
	return n, nil
}

func byteAt(i int64) byte { return byte(i ^ i>>8 ^ i>>16) }

// checker fails where what is written to it is not the pattern.
type checker struct {
	mu sync.Mutex
	n  int64
}

func (c *checker) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, v := range b {
		if v != byteAt(c.n+int64(i)) {
			return i, errors.New("a byte is wrong, missing or twice there")
		}
	}
	c.n += int64(len(b))
	return len(b), nil
}

func (c *checker) len() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func send(n int64) func(context.Context, *session.Session, command.LogsRequest) session.Result {
	return func(_ context.Context, s *session.Session, _ command.LogsRequest) session.Result {
		if _, err := io.Copy(s.Stream(command.StreamStdout), &pattern{n: n}); err != nil && s.Context().Err() == nil {
			return session.Result{Err: command.NewError(command.KindInternal, "%v", err)}
		}
		return session.Result{}
	}
}
