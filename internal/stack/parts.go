package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/atomicfile"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/callout"
	"github.com/harmony-fleet/fleet/internal/issuer"
)

// running is a part with a Run method, in a goroutine of its own.
type running struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of Run, once done is closed
}

// start runs f until stop. One that ends by itself is told to [Stack.Failed].
func (s *Stack) start(name string, f func(context.Context) error) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = f(ctx)
		if ctx.Err() != nil {
			return
		}
		select {
		case s.failed <- fmt.Errorf("%s: %w", name, cmp.Or(r.err, errEnded)):
		default: // one is enough
		}
	}()
	return r
}

var errEnded = errors.New("ended by itself")

// stop ends the part and waits for it. It may be called more than once.
func (r *running) stop() error {
	if r == nil {
		return nil
	}
	r.cancel()
	<-r.done
	if errors.Is(r.err, context.Canceled) {
		return nil
	}
	return r.err
}

// failed gives the error of a part that ended by itself.
func (r *running) failed() error {
	select {
	case <-r.done:
		return cmp.Or(r.err, errEnded)
	default:
		return nil
	}
}

// until waits for cond, which it asks every 2 ms and whenever again is ready.
func until(ctx context.Context, cond func() (bool, error)) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := cond(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// startTimeout bounds the start of one part.
const startTimeout = 20 * time.Second

func (s *Stack) brokerConfig() (broker.Config, error) {
	store, err := s.dir.sub("nats")
	if err != nil {
		return broker.Config{}, err
	}
	cfg := broker.Config{Port: s.opts.Port, StoreDir: store, Logger: slog.New(quiet{s.log.Handler()})}
	if cfg.Port == 0 {
		cfg.Port = 4222
	}
	if s.opts.TLS {
		cfg.TLS = &broker.TLS{CertFile: s.tls.cert, KeyFile: s.tls.key}
	}
	if s.opts.Auth == UserPass {
		cfg.UserPass = s.secrets.userPass()
		return cfg, nil
	}
	keys, err := s.seeds.Public()
	if err != nil {
		return cfg, fmt.Errorf("callout seeds: %w", err)
	}
	cfg.Callout = &broker.Callout{Issuer: keys.Issuer, XKey: keys.XKey, Password: s.secrets.Callout}
	return cfg, nil
}

// StartBroker starts the broker, after the first time on the same port.
func (s *Stack) StartBroker(ctx context.Context) error {
	s.mu.Lock()
	cfg, up := s.brokerCfg, s.broker != nil
	s.mu.Unlock()
	if up {
		return errors.New("the broker runs")
	}
	srv, err := broker.Start(ctx, cfg)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broker = srv
	if cfg.Port == AnyPort {
		_, err = fmt.Sscanf(filepath.Base(srv.Addr().String()), "127.0.0.1:%d", &s.brokerCfg.Port)
	}
	return err
}

// StopBroker stops the broker and waits for it. Clients go on trying to
// reconnect.
func (s *Stack) StopBroker() {
	s.mu.Lock()
	srv := s.broker
	s.broker = nil
	s.mu.Unlock()
	if srv != nil {
		srv.Close()
	}
}

// Broker is the running broker; nil while it is stopped.
func (s *Stack) Broker() *broker.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broker
}

// loadSeeds reads the seeds of the callout service, or makes them.
func (d *directory) loadSeeds() (callout.Seeds, error) {
	dir, err := d.sub("callout")
	if err != nil {
		return callout.Seeds{}, err
	}
	if _, err := os.Stat(filepath.Join(dir, callout.IssuerSeedFile)); errors.Is(err, fs.ErrNotExist) {
		if _, err := callout.GenerateSeeds(dir); err != nil {
			return callout.Seeds{}, err
		}
	}
	var seeds callout.Seeds
	var errs [2]error
	seeds.Issuer, errs[0] = os.ReadFile(filepath.Join(dir, callout.IssuerSeedFile))
	seeds.XKey, errs[1] = os.ReadFile(filepath.Join(dir, callout.XKeySeedFile))
	if err := errors.Join(errs[:]...); err != nil {
		return callout.Seeds{}, fmt.Errorf("callout seeds: %w", err)
	}
	return seeds, nil
}

// adminUser is the machine user whose tokens `fleet up` prints.
const adminUser = "admin"

// deviceUser is the name of a device's machine user.
func deviceUser(id string) string { return "device-" + id }

func (s *Stack) startIssuer(ctx context.Context) error {
	dir, err := s.dir.sub("issuer")
	if err != nil {
		return err
	}
	opts := issuer.Options{
		TokenLifetime:  s.opts.TokenLifetime,
		SigningKeyFile: filepath.Join(dir, "signing.pem"),
		Users:          []issuer.User{{Name: adminUser, Roles: []string{string(access.RoleAdmin)}}},
		Logger:         s.log.With("part", "issuer"),
	}
	if s.opts.TLS {
		opts.TLSCert, opts.TLSKey = s.tls.cert, s.tls.key
	}
	for _, id := range s.DeviceIDs() {
		user, err := s.dir.deviceUser(id)
		if err != nil {
			return err
		}
		opts.Users = append(opts.Users, user)
	}
	// Who somebody is includes the issuer's URL, so a directory that is used again
	// keeps its address as long as nobody else took it.
	listenFile := filepath.Join(dir, "listen")
	if last, err := os.ReadFile(listenFile); err == nil {
		opts.Listen = string(last)
	}
	s.issuer, err = issuer.Start(s.ctx, opts)
	if err != nil && opts.Listen != "" {
		s.log.Warn("the issuer's last address is taken; callers have other identities from now on", "address", opts.Listen, "error", err)
		opts.Listen = ""
		s.issuer, err = issuer.Start(s.ctx, opts)
	}
	if err != nil {
		return err
	}
	if err := atomicfile.Write(listenFile, []byte(s.issuer.Addr())); err != nil {
		return fmt.Errorf("keep the issuer's address: %w", err)
	}
	for _, id := range s.DeviceIDs() {
		if err := s.keepKey(id); err != nil {
			return err
		}
	}
	return s.renewAdmin(ctx)
}

// deviceUser is the machine user of a device, with the key that it already has.
func (d *directory) deviceUser(id string) (issuer.User, error) {
	user := issuer.User{Name: deviceUser(id), Roles: []string{string(access.RoleDevice)}}
	key, err := os.ReadFile(d.keyFile(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return user, fmt.Errorf("machine key of %s: %w", id, err)
	}
	user.KeyFile = key
	return user, nil
}

func (d *directory) keyFile(id string) string { return d.join("keys", deviceUser(id)+".json") }

// keepKey has a machine key made for a device and writes it where its agent
// reads it.
func (s *Stack) keepKey(id string) error {
	if _, err := s.dir.sub("keys"); err != nil {
		return err
	}
	key, err := s.issuer.KeyFile(deviceUser(id))
	if err != nil {
		return fmt.Errorf("machine key of %s: %w", id, err)
	}
	if err := atomicfile.Write(s.dir.keyFile(id), key); err != nil {
		return fmt.Errorf("machine key of %s: %w", id, err)
	}
	return nil
}

// StartCallout starts the callout service and waits until it answers logins.
func (s *Stack) StartCallout(ctx context.Context) error {
	devices := s.opts.DevicePrefix + "*"
	cfg := callout.Config{
		Listen: "off",
		NATS:   callout.NATS{URL: callout.URLs{s.NATSURL()}, User: broker.UserCallout, Password: s.secrets.Callout},
		Issuers: []callout.Issuer{{
			URL: s.issuer.URL(), Audience: s.issuer.ProjectID(), ProjectID: s.issuer.ProjectID(),
			Roles: access.Roles(), Devices: devices, CAFile: s.tls.ca,
		}},
	}
	cfg.NATS.TLS.CA = s.tls.ca
	svc, err := callout.New(callout.Options{Config: cfg, Seeds: s.seeds, Logger: s.log.With("part", "callout")})
	if err != nil {
		return fmt.Errorf("start the callout: %w", err)
	}
	r := s.start("callout", svc.Run)
	s.mu.Lock()
	up := s.callout != nil
	if !up {
		s.callout = r
	}
	s.mu.Unlock()
	if up {
		return errors.Join(errors.New("the callout runs"), r.stop())
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = until(ctx, func() (bool, error) { return svc.NotReady() == nil, r.failed() })
	if err != nil {
		return fmt.Errorf("start the callout: %w (%v)", err, svc.NotReady())
	}
	return nil
}

// StopCallout stops the callout service and waits for it. Connections live on;
// new ones are refused.
func (s *Stack) StopCallout() error {
	s.mu.Lock()
	r := s.callout
	s.callout = nil
	s.mu.Unlock()
	if err := r.stop(); err != nil {
		return fmt.Errorf("callout: %w", err)
	}
	return nil
}

func (s *Stack) provision(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	nc, err := s.connect(ctx, access.Data, "fleet-provision")
	if err != nil {
		return err
	}
	defer nc.Close()
	changes, err := broker.Provision(ctx, nc, broker.ProvisionOptions{})
	for _, c := range changes {
		s.log.Debug("provisioned", "stream", c.Stream, "action", c.Action)
	}
	return err
}

// uidOf gives the uid of a user of the issuer.
func (s *Stack) uidOf(user string) string {
	return command.UID(command.UserName(s.issuer.URL(), s.issuer.UserID(user)))
}
