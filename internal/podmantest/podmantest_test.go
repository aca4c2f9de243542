//go:build linux

package podmantest_test

import (
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/testwait"
	"time"
)

func TestAContainerOutlivesTheServiceAndNotThePodman(t *testing.T) {
	p := podmantest.Start(t)
	p.Image(t, "localhost/probe:1")
	if _, err := p.Run("run", "-d", "--name", "web", "-p", "8080:80", "localhost/probe:1", "serve", "hello"); err != nil {
		t.Fatal(err)
	}
	answers := func() bool {
		text, err := p.Get("http://127.0.0.1:8080/")
		return err == nil && text == "hello"
	}
	testwait.For(t, 10*time.Second, "the container answers", answers)
	p.Down()
	if !answers() {
		t.Error("the container ended with the service")
	}
	if err := p.Up(); err != nil {
		t.Fatal(err)
	}
	if out, err := p.Run("ps", "--format", "{{.Names}}"); err != nil || !strings.Contains(out, "web") {
		t.Errorf("%q, %v", out, err)
	}
}
