package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// readyTimeout bounds the start of an embedded server; it takes 3 to 6 ms, or
// as long as recovering the streams on disk takes.
const readyTimeout = 30 * time.Second

// Server is a nats-server inside this process. It can be given to
// nats.InProcessServer for connections that use no file descriptor.
type Server struct {
	*server.Server
	closeOnce sync.Once
}

// Start runs a server in this process and returns when it takes connections.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	cfg.setDefaults()
	text, err := cfg.Render()
	if err != nil {
		return nil, err
	}
	opts := &server.Options{}
	if err := opts.ProcessConfigString(text); err != nil {
		return nil, fmt.Errorf("broker configuration: %w", err)
	}
	opts.NoSigs = true
	prime, err := addPrimer(opts, cfg.Accounts.Fleet)
	if err != nil {
		return nil, fmt.Errorf("broker configuration: %w", err)
	}
	if err := cfg.checkPort(); err != nil {
		return nil, fmt.Errorf("start NATS: %w", err)
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("start NATS: %w", err)
	}
	s := &Server{Server: ns}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	fatal := make(chan error, 1)
	ns.SetLoggerV2(serverLog{log.With("part", "nats-server"), fatal}, false, false, false)

	started := make(chan struct{})
	go func() {
		defer close(started)
		ns.Start()
	}()
	err = awaitReady(ctx, ns, fatal)
	// It takes connections a little before its start is over, and must not be
	// stopped in between: it counts its goroutines without regard to that.
	<-started
	if err == nil {
		err = prime.run(ns)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("start NATS: %w", err)
	}
	return s, nil
}

// awaitReady returns nil when the server takes connections. It asks often and
// briefly: a single long ReadyForConnections would sleep 25 ms between two
// looks, and go on after the server has failed.
func awaitReady(ctx context.Context, ns *server.Server, fatal <-chan error) error {
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-fatal: // e.g. JetStream could not open its directory
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout.C:
			return fmt.Errorf("not ready after %v", readyTimeout)
		case <-tick.C:
		}
		if !ns.ReadyForConnections(time.Microsecond) {
			continue
		}
		select {
		case err := <-fatal:
			return err
		default:
			return ctx.Err()
		}
	}
}

// Close stops the server and returns when it has stopped.
func (s *Server) Close() {
	s.closeOnce.Do(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
}

// serverLog hands the server's log lines to slog, and its first fatal one to
// Start: an embedded server must not end the process.
type serverLog struct {
	log   *slog.Logger
	fatal chan<- error
}

func (l serverLog) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l serverLog) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l serverLog) Errorf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l serverLog) Debugf(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l serverLog) Tracef(string, ...any)           {}
func (l serverLog) Fatalf(format string, v ...any) {
	err := fmt.Errorf(format, v...)
	l.log.Error(err.Error())
	select {
	case l.fatal <- err:
	default:
	}
}
