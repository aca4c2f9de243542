package callout

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/oidcverify"
)

// stopBudget is how long Run takes, after its context is done, to finish the requests
// that it has accepted.
const stopBudget = time.Second

// keysFirst is how long Run waits at most for the issuers' keys before it takes requests.
// Until then the server gets no answer, and its clients wait with it; with neither keys
// nor patience they would all be refused in the first moment, and stay away for seconds.
const keysFirst = time.Second

// Options are what New takes. Nothing in them may change afterwards.
type Options struct {
	// Config is the configuration; zero fields mean their defaults.
	Config Config
	// Logger gets one line per denial and per change of state. nil: none.
	Logger *slog.Logger
	// Seeds are used in place of the files of Config.Signing, where set.
	Seeds Seeds
	// InProcess connects to a server of this process, in place of Config.NATS.URL.
	InProcess nats.InProcessConnProvider
}

// Service is one instance of the callout. Make it with New; Run it once.
type Service struct {
	cfg       Config
	logger    *slog.Logger
	keys      keyPairs
	probe     prober
	issuers   map[string]*trusted // by URL
	queue     *queue
	metrics   *metrics
	transport []nats.Option // how to reach the server, for our connection and the probe's
	inProcess nats.InProcessConnProvider

	keysFirst   time.Duration
	connChanged chan struct{}
	lastDropLog atomic.Int64
	lastConnErr atomic.Value // string

	mu       sync.Mutex
	addr     string
	probeErr error // nil once a probe was answered
}

type trusted struct {
	cfg      *Issuer
	verifier *oidcverify.Verifier
}

// New checks the options and reads the seed and CA files. It makes no connection.
func New(o Options) (*Service, error) {
	cfg := o.Config
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("callout configuration: %w", err)
	}
	s := &Service{
		cfg:         cfg,
		logger:      o.Logger,
		queue:       newQueue(cfg.Queue, time.Duration(cfg.MaxAge)),
		issuers:     map[string]*trusted{},
		keysFirst:   keysFirst,
		connChanged: make(chan struct{}, 1),
		probeErr:    errors.New("no self-probe was made yet"),
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	seeds := o.Seeds
	var err error
	if len(seeds.Issuer) == 0 {
		if seeds, err = cfg.Signing.load(); err != nil {
			return nil, fmt.Errorf("callout configuration: %w", err)
		}
	}
	if s.keys, err = seeds.parse(); err != nil {
		return nil, fmt.Errorf("callout configuration: %w", err)
	}
	s.probe = newProber([]byte(strings.TrimSpace(string(seeds.Issuer))))
	for i := range cfg.Issuers {
		iss := &cfg.Issuers[i]
		v, err := oidcverify.New(oidcverify.IssuerConfig{
			URL: iss.URL, Audience: iss.Audience, CAFile: iss.CAFile, TokenFile: iss.TokenFile, JWKSURL: iss.JWKSURL,
			Insecure: iss.Insecure, Refresh: time.Duration(iss.Refresh), Leeway: time.Duration(iss.Leeway),
			// Half of the workers at most wait for slow issuers; the others serve the rest.
			MaxWaiters: max(1, cfg.Workers/(2*len(cfg.Issuers))),
		}, s.logger)
		if err != nil {
			return nil, fmt.Errorf("callout configuration: issuers[%d]: %w", i, err)
		}
		s.issuers[iss.URL] = &trusted{cfg: iss, verifier: v}
	}
	s.inProcess = o.InProcess
	if s.inProcess == nil {
		if s.transport, err = cfg.NATS.transport(); err != nil {
			return nil, fmt.Errorf("callout configuration: %w", err)
		}
	}
	s.metrics = newMetrics(s)
	return s, nil
}

// transport checks the files that the [nats] table names and gives the TLS options.
func (n NATS) transport() ([]nats.Option, error) {
	if n.PasswordFile != "" {
		if _, err := os.ReadFile(n.PasswordFile); err != nil {
			return nil, fmt.Errorf("nats.password_file: %w", err)
		}
	}
	var opts []nats.Option
	if n.TLS.CA != "" {
		pem, err := os.ReadFile(n.TLS.CA)
		if err != nil {
			return nil, fmt.Errorf("nats.tls.ca: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("nats.tls.ca: %s holds no PEM certificate", n.TLS.CA)
		}
		opts = append(opts, nats.RootCAs(n.TLS.CA), nats.Secure())
	}
	if n.TLS.Cert != "" {
		if _, err := tls.LoadX509KeyPair(n.TLS.Cert, n.TLS.Key); err != nil {
			return nil, fmt.Errorf("nats.tls: %w", err)
		}
		opts = append(opts, nats.ClientCert(n.TLS.Cert, n.TLS.Key), nats.Secure())
	}
	return opts, nil
}

// PublicKeys are what the server's auth_callout block must name.
func (s *Service) PublicKeys() PublicKeys { return s.keys.public }

// Addr is where health and metrics are served; empty before Run has opened it, and
// when listen is "off".
func (s *Service) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

func (s *Service) setAddr(a string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr = a
}

func (s *Service) setProbe(err error) {
	s.mu.Lock()
	before := s.probeErr
	s.probeErr = err
	s.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		s.logger.Warn("not ready", "error", err)
	case err == nil && before != nil:
		s.logger.Info("ready: the server asks and is answered")
	}
}

// NotReady is nil when logins are served: the last self-probe was answered and at least
// one issuer's keys are there. Otherwise it says what is missing.
func (s *Service) NotReady() error {
	s.mu.Lock()
	err := s.probeErr
	s.mu.Unlock()
	if err != nil {
		return err
	}
	var missing []string
	for url, iss := range s.issuers {
		st := iss.verifier.Stats()
		if st.Keys > 0 {
			return nil
		}
		missing = append(missing, fmt.Sprintf("%s (%s)", url, st.LastError))
	}
	return fmt.Errorf("no issuer's keys could be fetched: %s", strings.Join(missing, ", "))
}

// WaitReady waits until NotReady is nil, or returns what it says when ctx ends. Run must be
// running.
func (s *Service) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.NotReady()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the callout is not ready: %w", err)
		case <-tick.C:
		}
	}
}

// Run serves until ctx is done, then finishes what it has accepted, within a second, and
// returns nil. It reconnects for ever. It returns an error only where it cannot start or go
// on at all. Call it once.
func (s *Service) Run(ctx context.Context) error {
	httpFailed, stopHTTP, err := s.serveHTTP()
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(ctx)
	requests, abandon := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by stopBudget
	var keys, workers, probes sync.WaitGroup
	for _, iss := range s.issuers {
		keys.Go(func() { _ = iss.verifier.Run(running) })
	}
	for range s.cfg.Workers {
		workers.Go(func() { s.work(requests) })
	}

	s.loadKeys(ctx)
	closed := make(chan struct{})
	nc, sub, drained, err := s.connect(closed)
	if err == nil {
		probes.Go(func() { s.runProbes(running, nc) })
		select {
		case <-ctx.Done():
		case err = <-httpFailed:
		case <-closed:
			err = errors.New("the connection to NATS was closed for good")
		}
	}

	// Stop: take nothing more, finish what was taken, then let go.
	s.logger.Info("stopping")
	deadline, stopped := context.WithTimeout(context.WithoutCancel(ctx), stopBudget)
	defer stopped()
	cancel()
	probes.Wait()
	s.mu.Lock()
	s.probeErr = errors.New("stopping")
	s.mu.Unlock()
	if nc != nil && nc.IsConnected() && sub.Drain() == nil {
		select {
		case <-drained:
		case <-deadline.Done():
		}
	}
	s.queue.close()
	context.AfterFunc(deadline, abandon)
	workers.Wait() // deadline ends each request that is still under way
	abandon()
	if nc != nil {
		_ = nc.FlushWithContext(deadline) // the last answers; in vain where the server is gone
		nc.Close()
		<-closed
	}
	stopHTTP(deadline)
	keys.Wait()
	for _, iss := range s.issuers {
		iss.verifier.Close()
	}
	return err
}

// loadKeys waits until each issuer's keys were fetched, or failed to be, or it took too long.
func (s *Service) loadKeys(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.keysFirst)
	defer cancel()
	var wg sync.WaitGroup
	for _, iss := range s.issuers {
		wg.Go(func() { _ = iss.verifier.Load(ctx) }) // the verifier logs what went wrong
	}
	wg.Wait()
}

// connect opens the service's own connection and subscribes. It does not wait for the
// server: nats.go goes on trying.
func (s *Service) connect(closed chan<- struct{}) (*nats.Conn, *nats.Subscription, <-chan struct{}, error) {
	changed := func() {
		select {
		case s.connChanged <- struct{}{}:
		default:
		}
	}
	opts := []nats.Option{
		nats.Name("fleet-callout"),
		nats.UserInfoHandler(s.userInfo),
		nats.CustomInboxPrefix(command.InboxPrefix(s.cfg.NATS.User)),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.Timeout(5 * time.Second),
		// Sooner than the clients, who can do nothing until this service is back.
		nats.ReconnectWait(200 * time.Millisecond),
		nats.ReconnectJitter(200*time.Millisecond, 200*time.Millisecond),
		nats.ReconnectBufSize(-1), // an answer is of no use to another connection
		nats.PingInterval(15 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.ConnectHandler(func(nc *nats.Conn) { s.connected(nc); changed() }),
		nats.ReconnectHandler(func(nc *nats.Conn) { s.connected(nc); changed() }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil: we closed it
				s.logger.Warn("lost the connection to NATS, reconnecting", "error", err)
			}
			changed()
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { s.connectFailed(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.logger.Error("NATS connection", "error", err)
		}),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }),
	}
	opts = append(opts, s.transport...)
	if s.inProcess != nil {
		opts = append(opts, nats.InProcessServer(s.inProcess))
	}
	nc, err := nats.Connect(strings.Join(s.cfg.NATS.URL, ","), opts...)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("connecting to NATS: %w", err)
	}
	drained := make(chan struct{})
	sub, err := nc.QueueSubscribe(RequestSubject, QueueGroup, s.accept)
	if err != nil {
		return nc, nil, nil, fmt.Errorf("subscribing to %s: %w", RequestSubject, err)
	}
	sub.SetClosedHandler(func(string) { close(drained) })
	return nc, sub, drained, nil
}

// userInfo is asked for at each connection attempt, so that a changed password file is
// taken up.
func (s *Service) userInfo() (string, string) {
	n := s.cfg.NATS
	if n.PasswordFile == "" {
		return n.User, n.Password
	}
	raw, err := os.ReadFile(n.PasswordFile)
	if err != nil {
		s.logger.Error("nats.password_file cannot be read", "error", err)
		return n.User, ""
	}
	return n.User, strings.TrimSpace(string(raw))
}

func (s *Service) connected(nc *nats.Conn) {
	s.lastConnErr.Store("")
	s.logger.Info("connected to NATS", "server", nc.ConnectedServerName(), "url", nc.ConnectedUrlRedacted())
}

// connectFailed logs each kind of failure once, not each attempt.
func (s *Service) connectFailed(err error) {
	if before, _ := s.lastConnErr.Swap(err.Error()).(string); before != err.Error() {
		s.logger.Warn("cannot connect to NATS, trying again for ever", "error", err)
	}
}
