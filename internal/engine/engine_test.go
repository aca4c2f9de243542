package engine_test

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/internal/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen serves h on a socket, as an engine does.
func listen(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "engine.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return "unix://" + path
}

func open(t *testing.T, socket string) *engine.Engine {
	t.Helper()
	e, err := engine.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestPingFindsAnEngineOfAnyVersion(t *testing.T) {
	for _, version := range []string{"1.41", "1.51", "1.99"} {
		socket := listen(t, func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/_ping") {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("API-Version", version)
			_, _ = w.Write([]byte("OK"))
		})
		if err := open(t, socket).Ping(t.Context()); err != nil {
			t.Errorf("%s: %v", version, err)
		}
	}
}

func TestPingFailsByItsDeadline(t *testing.T) {
	release := make(chan struct{})
	silent := listen(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-release:
		}
	})
	defer close(release)
	failing := listen(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken", http.StatusInternalServerError) })
	for name, socket := range map[string]string{
		"nothing there": "unix://" + t.TempDir() + "/none.sock", "silence": silent, "an error": failing,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		began := time.Now()
		err := open(t, socket).Ping(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), socket) || time.Since(began) > 5*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(began))
		}
	}
}

func TestASocketThatIsNoAddressIsRefused(t *testing.T) {
	if _, err := engine.Open("what is this"); err == nil || !strings.Contains(err.Error(), engine.DefaultSocket) {
		t.Errorf("err = %v", err)
	}
	open(t, "")
}
