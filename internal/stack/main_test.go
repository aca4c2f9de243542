package stack

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the issuer's provider library logs there
	goleak.VerifyTestMain(m)
}

// inEachMode runs a test once for each way to sign in.
func inEachMode(t *testing.T, test func(t *testing.T, auth Auth)) {
	for _, auth := range []Auth{Callout, UserPass} {
		t.Run(string(auth), func(t *testing.T) { test(t, auth) })
	}
}

// up starts a system on a free port; it goes with the test.
func up(t *testing.T, opts Options) *Stack {
	t.Helper()
	if opts.Port == 0 {
		opts.Port = AnyPort
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		begin := time.Now()
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("close took %v", d)
		}
		select {
		case err := <-s.Failed():
			t.Errorf("a part ended by itself: %v", err)
		default:
		}
	})
	return s
}

// pings waits until the device answers.
func pings(t *testing.T, c *client.Client, device string) {
	t.Helper()
	var last error
	testwait.For(t, patience, "an answer of "+device, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, last = c.Ping(ctx, device)
		return last == nil
	})
}

func outcome(err error) command.Outcome {
	if e, ok := err.(*command.Error); ok {
		return e.Outcome
	}
	if err == nil {
		return command.OutcomeOK
	}
	return "not a *command.Error"
}

// tokenSource signs in to an account with a token.
func tokenSource(account access.Account, token string) credentials.Source {
	return credentials.Static(credentials.Credential{User: string(account), Token: token})
}
