package natsconn_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

// TestASilentCalloutIsOneOutcome: the server waits 2 s for its callout and then
// refuses the client, or before that sends it a PING, which the library takes for a
// fault. Both are the same to the caller.
func TestASilentCalloutIsOneOutcome(t *testing.T) {
	for name, last := range map[string]string{"refused": "-ERR 'Authorization Violation'\r\n", "pinged first": "PING\r\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan struct{})
			defer func() {
				ln.Close()
				<-served
			}()
			go func() {
				defer close(served)
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					serveLate(conn, last)
				}
			}()
			_, err = natsconn.Connect(t.Context(), natsconn.Config{
				URLs: []string{ln.Addr().String()}, Credentials: credentials.Static(credentials.Credential{Token: "x"}),
			})
			var e *command.Error
			if !errors.As(err, &e) || e.Outcome != command.OutcomeDenied || !strings.Contains(e.Message, "auth callout may not have answered") {
				t.Errorf("%v", err)
			}
		})
	}
}

// serveLate plays a server that says last 2 s after the client signed in.
func serveLate(conn net.Conn, last string) {
	defer conn.Close()
	if _, err := conn.Write([]byte(`INFO {"server_id":"x","version":"2.15.2","headers":true,"max_payload":1048576,"auth_required":true}` + "\r\n")); err != nil {
		return
	}
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil { // CONNECT
		return
	}
	<-time.After(2 * time.Second)
	_, _ = conn.Write([]byte(last))
}

// TestRefusedConnectionsAreNotLeftOpen: a fleet that is kept out for a while must
// not run out of file descriptors.
func TestRefusedConnectionsAreNotLeftOpen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection would close them too
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, closed := make(chan struct{}), make(chan struct{}, 64)
	var conns sync.WaitGroup
	go func() {
		defer close(served)
		defer conns.Wait()
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				if _, err := conn.Write([]byte(`INFO {"server_id":"x","version":"2.15.2","headers":true,"max_payload":1048576,"auth_required":true}` + "\r\n")); err != nil {
					return
				}
				in := bufio.NewReader(conn)
				if _, err := in.ReadString('\n'); err != nil { // CONNECT
					return
				}
				_, _ = conn.Write([]byte("-ERR 'Authorization Violation'\r\n"))
				// A server would close it. This one waits for the client to.
				_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
				if _, err := io.Copy(io.Discard, in); err == nil {
					closed <- struct{}{}
				}
			})
		}
	}()
	nc, err := natsconn.Connect(t.Context(), natsconn.Config{
		URLs: []string{ln.Addr().String()}, Credentials: credentials.Static(credentials.Credential{Token: "x"}), Retry: true,
		Options: []nats.Option{nats.ReconnectWait(time.Millisecond), nats.ReconnectJitter(0, 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		nc.Close()
		ln.Close()
		<-served
	}()
	for i := range 5 {
		select {
		case <-closed:
		case <-time.After(10 * time.Second):
			t.Fatalf("%d refused connections were closed by the client, and no more", i)
		}
	}
}
