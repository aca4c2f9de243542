package callout

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	probePrefix   = "fleet-probe."
	probeLifetime = time.Minute
)

// prober makes and recognises probe tokens: "fleet-probe.<unix>.<nonce>.<mac>", with a MAC
// that only holders of the issuer seed, the instances of this deployment, can make.
type prober struct{ key []byte }

func newProber(issuerSeed []byte) prober {
	mac := hmac.New(sha256.New, issuerSeed)
	mac.Write([]byte("fleet-callout self-probe v1"))
	return prober{key: mac.Sum(nil)}
}

func (p prober) mac(text string) string {
	mac := hmac.New(sha256.New, p.key)
	mac.Write([]byte(text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func (p prober) token() string {
	nonce := make([]byte, 12)
	rand.Read(nonce) // never fails
	text := probePrefix + strconv.FormatInt(time.Now().Unix(), 10) + "." + hex.EncodeToString(nonce)
	return text + "." + p.mac(text)
}

func (p prober) ours(token string) bool {
	if !strings.HasPrefix(token, probePrefix) || len(token) > 256 {
		return false
	}
	at := strings.LastIndexByte(token, '.')
	text := token[:at]
	if !hmac.Equal([]byte(token[at+1:]), []byte(p.mac(text))) {
		return false
	}
	unix, err := strconv.ParseInt(strings.SplitN(text, ".", 3)[1], 10, 64)
	if err != nil {
		return false
	}
	age := time.Since(time.Unix(unix, 0))
	return age < probeLifetime && age > -probeLifetime
}

// probeOnce signs in with a probe token at the server that the service itself is connected
// to, and wants to be refused soon: that shows that the server asks and that someone of
// this queue group answers. Silence looks like a refusal too, only later.
func (s *Service) probeOnce(ctx context.Context, nc *nats.Conn) error {
	if !nc.IsConnected() {
		return errors.New("not connected to NATS")
	}
	ctx, cancel := context.WithTimeout(ctx, serverBudget+time.Second)
	defer cancel()
	// The server has then seen the subscription, and the connection is alive.
	if err := nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("the connection to NATS does not answer: %w", err)
	}
	opts := []nats.Option{
		nats.Name("fleet-callout self-probe"),
		nats.Token(s.probe.token()),
		nats.NoReconnect(),
		nats.Timeout(serverBudget + time.Second),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}
	opts = append(opts, s.transport...)
	dial := dialer{ctx: ctx, inProcess: s.inProcess}
	if s.inProcess != nil {
		opts = append(opts, nats.InProcessServer(dial))
	} else {
		opts = append(opts, nats.SetCustomDialer(dial))
	}
	start := time.Now()
	probe, err := nats.Connect(nc.ConnectedUrl(), opts...)
	took := time.Since(start)
	if err == nil {
		probe.Close()
	}
	switch {
	case err == nil:
		return errors.New("the self-probe was let in: this server does not ask the callout")
	case !errors.Is(err, nats.ErrAuthorization):
		return fmt.Errorf("the self-probe could not reach the server: %w", err)
	case took > time.Duration(s.cfg.MaxAge):
		return fmt.Errorf("the self-probe was not answered (refused after %v)", took.Round(time.Millisecond))
	}
	return nil
}

// runProbes keeps the readiness up to date until ctx is done.
func (s *Service) runProbes(ctx context.Context, nc *nats.Conn) {
	const retry = 250 * time.Millisecond
	wait := time.Duration(0)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.connChanged: // looked at again at once
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
		err := s.probeOnce(ctx, nc)
		if ctx.Err() != nil {
			return
		}
		s.setProbe(err)
		if wait = time.Duration(s.cfg.ProbeInterval); err != nil {
			wait = min(wait, retry)
		}
	}
}

// dialer ties a connection to a context, which nats.go does not: the end of ctx ends the
// connection, and with it a sign-in that nobody answers.
type dialer struct {
	ctx       context.Context
	inProcess nats.InProcessConnProvider
}

// Dial is for nats.SetCustomDialer.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	var nd net.Dialer
	return d.tie(nd.DialContext(d.ctx, network, address))
}

// InProcessConn is for nats.InProcessServer.
func (d dialer) InProcessConn() (net.Conn, error) { return d.tie(d.inProcess.InProcessConn()) }

func (d dialer) tie(c net.Conn, err error) (net.Conn, error) {
	if err == nil {
		context.AfterFunc(d.ctx, func() { c.Close() })
	}
	return c, err
}
