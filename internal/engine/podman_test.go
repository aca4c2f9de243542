//go:build linux

package engine_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// TestOnPodman holds what the package says of its errors and lists.
func TestOnPodman(t *testing.T) {
	p := podmantest.Start(t)
	const image = "localhost/probe:1"
	p.Image(t, image)
	e := open(t, p.Socket)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := e.Image(ctx, "localhost/none:1"); !errors.Is(err, engine.ErrNotFound) || !strings.Contains(err.Error(), "localhost/none:1") {
		t.Errorf("no image: %v", err)
	}
	if _, err := e.Inspect(ctx, "none"); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("no container: %v", err)
	}
	if err := e.Remove(ctx, "none"); err != nil {
		t.Errorf("remove what is gone: %v", err)
	}
	spec := engine.Spec{
		Name:    "fleet_d1_one_web_x",
		Labels:  engine.Labels{Device: "d1", Deployment: "one", Service: "web", Hash: "h", Restart: "always", Claims: []string{"port 1/tcp", "volume a,b"}},
		Service: command.Service{Name: "web", Image: image, Command: []string{"exit", "3"}, StopTimeoutS: 4},
	}
	changed := make(chan string, 64)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- e.Watch(watching, "d1", func(id string) { changed <- id }) }()
	if id := <-changed; id != "" {
		t.Errorf("first event %q", id)
	}
	id, err := e.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Create(ctx, spec); !errors.Is(err, engine.ErrConflict) {
		t.Errorf("the same name again: %v", err)
	}
	missing := spec
	missing.Name, missing.Service.Image = "other", "localhost/none:1"
	if _, err := e.Create(ctx, missing); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("no image: %v", err)
	}
	list, err := e.Containers(ctx, "d1")
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	c := list[0]
	if c.ID != id || c.Name != spec.Name || c.State != engine.StateCreated || c.Image != image || c.ImageID == "" || time.Since(c.Created) > time.Minute ||
		c.Labels.Service != "web" || !slices.Equal(c.Labels.Claims, spec.Labels.Claims) {
		t.Errorf("%+v", c)
	}
	if list, err := e.Containers(ctx, "d"); err != nil || len(list) != 0 {
		t.Errorf("another device's: %+v, %v", list, err)
	}
	// Somebody's own container, of an image that was committed from one of ours.
	spec.Labels.Device, spec.Name = "d2", "fleet_d2_one_web_x"
	ours, err := e.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"commit", ours, "localhost/committed:1"}, {"create", "--name", "theirs", "localhost/committed:1"}} {
		if _, err := p.Run(args...); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := p.Run("inspect", "--format", `{{index .Config.Labels "dev.harmony.fleet.device"}}`, "theirs"); err != nil || out != "d2" {
		t.Fatalf("the label of the other container: %q, %v", out, err)
	}
	if list, err := e.Containers(ctx, "d2"); err != nil || len(list) != 1 || list[0].ID != ours {
		t.Errorf("with somebody else's: %+v, %v", list, err)
	}
	if i, err := e.Image(ctx, c.ImageID); err != nil || i.ID != c.ImageID || !strings.HasPrefix(i.Digest, "sha256:") {
		t.Errorf("%+v, %v", i, err)
	}
	if err := e.Start(ctx, id); err != nil {
		t.Fatal(err)
	}
	var d engine.Details
	testwait.For(t, 10*time.Second, "ended", func() bool {
		if d, err = e.Inspect(ctx, id); err != nil {
			t.Fatal(err)
		}
		return d.State == engine.StateExited
	})
	if d.ExitCode != 3 || d.StartedAt.IsZero() || d.FinishedAt.IsZero() || d.Labels.Hash != "h" || d.StopGrace != 4*time.Second {
		t.Errorf("%+v", d)
	}
	if err := e.Stop(ctx, id); err != nil {
		t.Errorf("stop of what does not run: %v", err)
	}
	if err := e.Remove(ctx, id); err != nil {
		t.Error(err)
	}
	if err := e.Start(ctx, id); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("start of what is gone: %v", err)
	}
	testwait.For(t, 10*time.Second, "events", func() bool { return len(changed) >= 3 })
	for len(changed) > 0 {
		if got := <-changed; got != id {
			t.Errorf("event of %q", got)
		}
	}
	p.Down()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the end of the events is no error")
		}
	case <-time.After(10 * time.Second):
		t.Error("the events of an engine that is gone go on")
	}
	stop()
	if _, err := e.Containers(ctx, "d1"); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("no engine: %v", err)
	}
}
