package e2e

import (
	"log/slog"
	"os"
	"testing"
)

// New is BringUp for a test: the test fails where the fleet does not come up, and the
// fleet is taken down when the test ends. Where the test has failed, what there is to
// know is saved before, and the test's log says where.
//
// The test is skipped unless HARMONY_FLEET_E2E is 1; with it, a cluster that cannot be
// had fails the test. Under CI, where the variable CI is "true", it is no skip either.
func New(t testing.TB, opts Options) *Stack {
	t.Helper()
	Require(t)
	if opts.Progress == nil {
		opts.Progress = os.Stderr
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s, err := BringUp(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			if dir, err := s.SaveDiagnostics(); err != nil {
				t.Logf("diagnostics were not saved: %v", err)
			} else {
				t.Logf("diagnostics are in %s", dir)
			}
		}
		if s.opts.KeepNamespace {
			s.PrintDebugInfo(t.Output())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Require skips the test where tests that need a cluster are not asked for.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv(EnvGate) == "1" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not 1, and under CI no test of the cluster may be left out: run make test", EnvGate)
	}
	t.Skipf("needs a cluster, and some minutes the first time: set %s=1", EnvGate)
}
