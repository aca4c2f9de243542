package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Limits of the HTTP server.
const (
	maxBody      = 64 << 10 // an assertion is 1 KiB
	maxHeader    = 16 << 10
	headTimeout  = 5 * time.Second
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	idleTimeout  = 60 * time.Second
	// stopTimeout is how long Stop lets requests end by themselves.
	stopTimeout = time.Second
)

// Server is a running issuer. Its methods may be called at any time from any
// goroutine.
type Server struct {
	opts  Options
	log   *slog.Logger
	url   string
	addr  string // with the port that was found
	tls   *tls.Config
	users *directory
	keys  *keyRing

	handler http.Handler
	faults  atomic.Pointer[Faults]
	unwatch func() bool // of the context of Start

	// life serializes Stop, Restart and Close; held while they wait, since
	// none of them means anything before the one before it is done.
	life   sync.Mutex
	live   *listening // nil: stopped
	closed bool
}

// listening is the time between a start and a stop.
type listening struct {
	http *http.Server
	stop chan struct{} // closed at the beginning of the stop: ends delays
	done chan struct{} // closed when Serve has returned
}

// Start makes an issuer and listens. It runs until Close, or until ctx ends,
// which closes it too.
func Start(ctx context.Context, opts Options) (*Server, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	s := &Server{
		opts:  opts,
		log:   opts.Logger,
		addr:  opts.Listen,
		users: newDirectory(opts.Algorithm),
		keys:  &keyRing{alg: opts.Algorithm, grace: opts.KeyGrace, file: opts.SigningKeyFile},
	}
	for _, u := range opts.Users {
		if err := s.users.add(u); err != nil {
			return nil, fmt.Errorf("issuer: %w", err)
		}
	}
	s.opts.Users = nil // the directory has them
	if opts.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(opts.TLSCert, opts.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("issuer: tls: %w", err)
		}
		s.tls = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if err := s.keys.open(); err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	ln, err := s.listen(ctx)
	if err != nil {
		return nil, err
	}
	s.addr = ln.Addr().String()
	s.url = opts.Issuer
	if s.url == "" {
		s.url = s.scheme() + "://" + s.hostPort(opts.Listen)
	}
	s.handler = newHandler(s, s.limit)
	// An issuer URL with a path is served below that path.
	if u, err := url.Parse(s.url); err == nil && u.Path != "" {
		s.handler = http.StripPrefix(u.Path, s.handler)
	}
	s.serve(ln)
	s.unwatch = context.AfterFunc(ctx, s.shut)
	return s, nil
}

func (s *Server) scheme() string {
	if s.tls != nil {
		return "https"
	}
	return "http"
}

// hostPort keeps a host name that was configured (a certificate may be for
// it), with the port that was found.
func (s *Server) hostPort(configured string) string {
	host, _, err := net.SplitHostPort(configured)
	_, port, err2 := net.SplitHostPort(s.addr)
	if err != nil || err2 != nil {
		return s.addr
	}
	return net.JoinHostPort(host, port)
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("issuer: %s is in use: stop what listens there, or choose another port (0 takes any free one): %w", s.addr, syscall.EADDRINUSE)
	case err != nil:
		return nil, fmt.Errorf("issuer: cannot listen on %s: %w", s.addr, err)
	}
	return ln, nil
}

// serve begins to answer; life is held, or nobody else has s yet.
func (s *Server) serve(ln net.Listener) {
	l := &listening{stop: make(chan struct{}), done: make(chan struct{})}
	l.http = &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.Background(), stopKey{}, l.stop)
		},
	}
	if s.tls != nil {
		ln = tls.NewListener(ln, s.tls)
	}
	s.live = l
	go func() {
		defer close(l.done)
		if err := l.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("issuer stopped listening", "error", err)
		}
	}()
}

// Stop stops listening, waits for the requests under way, at most for a
// second, and cuts all connections. Users, keys and URL stay. It does nothing
// on a stopped server.
func (s *Server) Stop() {
	s.life.Lock()
	defer s.life.Unlock()
	s.stopLocked()
}

func (s *Server) stopLocked() {
	l := s.live
	if l == nil {
		return
	}
	s.live = nil
	close(l.stop)
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := l.http.Shutdown(ctx); err != nil {
		l.http.Close()
	}
	<-l.done
}

// Restart listens again on the same address. It is an error when that was
// taken meanwhile or the server is closed, and does nothing while it listens.
func (s *Server) Restart() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return errors.New("issuer: restart: closed: start a new one")
	}
	if s.live != nil {
		return nil
	}
	ln, err := s.listen(context.Background())
	if err != nil {
		return err
	}
	s.serve(ln)
	return nil
}

// Close is Stop for good. It is safe to call more than once.
func (s *Server) Close() {
	s.unwatch()
	s.shut()
}

func (s *Server) shut() {
	s.life.Lock()
	defer s.life.Unlock()
	s.closed = true
	s.stopLocked()
}

// URL is the issuer's URL, the iss of its tokens.
func (s *Server) URL() string { return s.url }

// TokenURL is the token endpoint.
func (s *Server) TokenURL() string { return s.url + tokenPath }

// JWKSURL is the keys endpoint.
func (s *Server) JWKSURL() string { return s.url + keysPath }

// Addr is the host and port it listens on.
func (s *Server) Addr() string { return s.addr }

// ProjectID is the project of the users' roles.
func (s *Server) ProjectID() string { return s.opts.ProjectID }

// AddUser adds a user. A name or id that is taken is an error.
func (s *Server) AddUser(u User) error {
	if err := s.users.add(u); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	return nil
}

// RemoveUser removes a user by name, and says whether there was one. Tokens
// issued before live on, as with any issuer of JWTs.
func (s *Server) RemoveUser(name string) bool { return s.users.remove(name) }

// UserID gives the id, the sub of tokens, of a user; empty if there is none.
func (s *Server) UserID(name string) string {
	a, _ := s.users.get(name)
	return a.ID
}

// KeyFile gives the machine key file of a user, named by name or id: JSON as
// Zitadel's console gives it. The first call makes the key.
func (s *Server) KeyFile(user string) ([]byte, error) {
	data, err := s.users.keyFile(user)
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	return data, nil
}

// RotateKeys makes a new signing key. The old one is published for
// Options.KeyGrace more.
func (s *Server) RotateKeys() error {
	if err := s.keys.rotate(); err != nil {
		return fmt.Errorf("issuer: rotate keys: %w", err)
	}
	s.log.Info("signing key rotated", "kid", s.keys.current().id)
	return nil
}

// DropRetiredKeys stops publishing all keys but the current one: tokens signed
// with those are invalid from now on.
func (s *Server) DropRetiredKeys() error {
	if err := s.keys.dropRetired(); err != nil {
		return fmt.Errorf("issuer: drop retired keys: %w", err)
	}
	return nil
}

// KeyID is the id of the key that signs now.
func (s *Server) KeyID() string { return s.keys.current().id }
