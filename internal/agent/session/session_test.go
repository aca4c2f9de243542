package session_test

import (
	"testing"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/internal/agent/session"
)

func TestOutputArrivesWhole(t *testing.T) {
	const size = 64<<20 + 17
	r := newRig(t, session.Options{}, send(size))
	var out checker
	if err := r.c.Logs(t.Context(), device, client.LogsOptions{Container: "x", Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	if out.len() != size {
		t.Errorf("%d bytes of %d", out.len(), size)
	}
	if e := r.awaitEnd(); e.Bytes.Stdout != size {
		t.Errorf("ended %+v", e)
	}
}
