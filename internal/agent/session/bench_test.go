package session_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/session"
	"github.com/harmony-fleet/fleet/internal/broker"
)

// BenchmarkStream is the throughput of one session from a source that costs
// nothing to one reader, by TCP and across the two accounts, and of messages of
// the same size published on bare NATS.
func BenchmarkStream(b *testing.B) {
	for name, window := range map[string]int64{"1MiB": 0, "4MiB": 4 << 20} {
		b.Run("session/"+name, func(b *testing.B) {
			r := newRig(b, session.Options{}, func(_ context.Context, s *session.Session, _ command.LogsRequest) session.Result {
				buf := make([]byte, command.MaxChunk)
				for range b.N {
					if _, err := s.Write(command.StreamStdout, buf); err != nil {
						break
					}
				}
				return session.Result{}
			})
			b.SetBytes(command.MaxChunk)
			b.ReportAllocs()
			b.ResetTimer()
			if err := r.c.Logs(b.Context(), device, client.LogsOptions{Container: "x", Stdout: io.Discard, Window: window}); err != nil {
				b.Fatal(err)
			}
		})
	}
	b.Run("bare", func(b *testing.B) {
		r := newRig(b, session.Options{}, nil)
		uid := command.UID(broker.UserOps)
		subject := command.SessionSubject(device, uid, command.NewSessionID())
		var got atomic.Int64
		done := make(chan struct{})
		sub, err := r.ops.Subscribe(subject, func(*nats.Msg) {
			if got.Add(1) == int64(b.N) {
				close(done)
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := sub.SetPendingLimits(-1, -1); err != nil {
			b.Fatal(err)
		}
		if err := r.ops.FlushTimeout(patience); err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, command.MaxChunk)
		nc := r.conn.Load()
		b.SetBytes(command.MaxChunk)
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			if err := nc.Publish(subject, buf); err != nil {
				b.Fatal(err)
			}
		}
		select {
		case <-done:
		case <-time.After(patience):
			b.Fatalf("%d of %d messages", got.Load(), b.N)
		}
	})
}
