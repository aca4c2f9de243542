package e2e

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inEachMode runs a test in both ways to sign in.
func inEachMode(t *testing.T, test func(t *testing.T, mode AuthMode)) {
	for _, mode := range []AuthMode{UserPass, Callout} {
		t.Run(string(mode), func(t *testing.T) { test(t, mode) })
	}
}
