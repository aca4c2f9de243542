// Package tests holds the end-to-end tests: each feature of the fleet proved against
// the whole of it in a real cluster.
package tests

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/e2e"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var modes = []e2e.AuthMode{e2e.UserPass, e2e.Callout}

func TestPing(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			stack := e2e.New(t, e2e.Options{AuthMode: mode})
			reply, err := stack.Client().Ping(t.Context(), stack.DeviceIDs[0])
			if err != nil {
				t.Fatal(err)
			}
			if reply.DeviceID != stack.DeviceIDs[0] || reply.Protocol != command.Protocol || reply.Runtime != command.RuntimeDisabled || reply.AgentVersion == "" {
				t.Errorf("reply %+v", reply)
			}
		})
	}
}

func TestPingOffline(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			stack := e2e.New(t, e2e.Options{AuthMode: mode})
			begin := time.Now()
			_, err := stack.Client().Ping(t.Context(), "vm-device-none-"+stack.Namespace)
			if took := time.Since(begin); took > time.Second {
				t.Errorf("that took %v", took)
			}
			if !errors.Is(err, client.ErrDeviceOffline) {
				t.Errorf("%v, want ErrDeviceOffline", err)
			}
		})
	}
}
