package operator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

// state is what /readyz and /metrics tell of the operator.
type state struct {
	mu     sync.Mutex
	reason string // why it is not ready, until connected is called
	nc     *nats.Conn
	mirror *mirror.Mirror
	leads  bool
	addrs  map[string]string

	once     sync.Once
	registry *prometheus.Registry
}

// set says why the operator is not ready.
func (s *state) set(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reason = fmt.Sprintf(format, args...)
}

// connected says that from now on only the broker may keep it from being ready.
func (s *state) connected(nc *nats.Conn, m *mirror.Mirror) {
	s.mu.Lock()
	s.reason, s.nc, s.mirror = "", nc, m
	s.mu.Unlock()
	s.own().MustRegister(m)
}

func (s *state) lead() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leads = true
}

// notReady says why the operator is not ready; nil: it is. One that waits to lead is
// ready when it could.
func (s *state) notReady() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.reason != "":
		return errors.New(s.reason)
	case !s.nc.IsConnected():
		return errors.New("not connected to NATS")
	case s.leads:
		return s.mirror.NotCurrent()
	}
	return nil
}

func (s *state) setAddr(what, addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.addrs == nil {
		s.addrs = map[string]string{}
	}
	s.addrs[what] = addr
}

func (s *state) addr(what string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs[what]
}

// own is the registry of the operator's own metrics; those of controller-runtime are
// in its global one.
func (s *state) own() *prometheus.Registry {
	s.once.Do(func() {
		s.registry = prometheus.NewRegistry()
		s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fleet_operator_leader", Help: "1 while this replica leads.",
		}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.leads {
				return 1
			}
			return 0
		}))
	})
	return s.registry
}

func (s *state) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.notReady(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

func (s *state) metrics() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{metrics.Registry, s.own()}, promhttp.HandlerOpts{}))
	return mux
}

// listen takes the address at once; serve answers there until its context ends.
func listen(what, address string, h http.Handler) (serve func(context.Context) error, addr string, err error) {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, "", fmt.Errorf("%s.listen: %w; choose another address, or \"off\"", what, err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	return func(ctx context.Context) error {
		stopped := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(stopped)
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if srv.Shutdown(ctx) != nil {
				srv.Close()
			}
		})
		err := srv.Serve(ln)
		if !stop() {
			<-stopped
		}
		if !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}, ln.Addr().String(), nil
}
