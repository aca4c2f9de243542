package callout

import (
	"context"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/issuer"
)

// BenchmarkLogin measures whole sign-ins over TCP, by nats.go: callout with a verified
// token, and, to compare within one run, a static user that needs none.
func BenchmarkLogin(b *testing.B) {
	e := newEnv(b)
	e.level = slog.LevelInfo
	e.serve(b, nil)
	token := e.token(b, "device-vm-1", issuer.MintOptions{})
	measure := func(name string, dial func() (*nats.Conn, error)) {
		b.Run(name, func(b *testing.B) {
			b.SetParallelism(32)
			cpu := cpuTime(b)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					nc, err := dial()
					if err != nil {
						b.Error(err)
						return
					}
					nc.Close()
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "logins/s")
			// Processor time of this process, which a busy machine does not stretch as it
			// does the clock.
			b.ReportMetric(float64(cpuTime(b)-cpu)/1e3/float64(b.N), "cpu-µs/login")
		})
	}
	measure("callout", func() (*nats.Conn, error) { return e.dial(token) })
	measure("static", func() (*nats.Conn, error) {
		return nats.Connect(e.broker.ClientURL(), nats.UserInfo(broker.UserCallout, calloutPassword), nats.NoReconnect())
	})
}

// BenchmarkHandle measures the callout's own work for one login: decrypt, verify, decide,
// mint, encrypt.
func BenchmarkHandle(b *testing.B) {
	e := newEnv(b)
	e.level = slog.LevelInfo
	c := e.serve(b, nil)
	msg := fakeRequest(b, c.keys, e.token(b, "device-vm-1", issuer.MintOptions{}))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			var l login
			user, err := c.login(context.Background(), msg, &l)
			if err == nil {
				_, err = c.keys.answer(l.req, user, "")
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// fakeRequest is what a server would send.
func fakeRequest(t testing.TB, k keyPairs, token string) *nats.Msg {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	server, err := nkeys.CreateServer()
	must(err)
	serverID, err := server.PublicKey()
	must(err)
	curve, err := nkeys.CreateCurveKeys()
	must(err)
	curvePub, err := curve.PublicKey()
	must(err)
	user, err := nkeys.CreateUser()
	must(err)
	userPub, err := user.PublicKey()
	must(err)

	c := jwt.NewAuthorizationRequestClaims(k.public.Issuer)
	c.Audience, c.UserNkey, c.Expires = requestAudience, userPub, time.Now().Add(2*time.Second).Unix()
	c.Server = jwt.ServerID{ID: serverID, XKey: curvePub}
	c.ClientInformation = jwt.ClientInformation{Host: "127.0.0.1", Kind: "Client", Type: "nats"}
	c.ConnectOptions = jwt.ConnectOptions{Token: token}
	text, err := c.Encode(server)
	must(err)
	sealed, err := curve.Seal([]byte(text), k.public.XKey)
	must(err)
	return &nats.Msg{Subject: RequestSubject, Header: nats.Header{headerServerXKey: {curvePub}}, Data: sealed}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
