package e2e_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/e2e"
)

// A whole end-to-end test. With `func TestTimeIsTold(t *testing.T)` in a _test.go file
// this is all there is to write.
func ExampleNew() {
	_ = func(t *testing.T) {
		stack := e2e.New(t, e2e.Options{NumDevices: 2})
		for _, id := range stack.DeviceIDs {
			reply, err := stack.Client().Ping(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if reply.Runtime != command.RuntimeDisabled {
				t.Errorf("%s: runtime %s in a Pod", id, reply.Runtime)
			}
		}
	}
}

// A program that is no test brings a fleet up, uses it, and takes it down.
func ExampleBringUp() {
	demo := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		stack, err := e2e.BringUp(ctx, e2e.Options{AuthMode: e2e.UserPass, Progress: os.Stderr})
		if err != nil {
			return err
		}
		defer stack.Close()
		stack.PrintDebugInfo(os.Stderr)
		reply, err := stack.Client().Ping(ctx, stack.DeviceIDs[0])
		if err != nil {
			return err
		}
		fmt.Println(reply.AgentVersion)
		return nil
	}
	_ = demo
}
