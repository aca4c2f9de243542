package walls

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/harmony-fleet/fleet"

// TestWalls holds what a package may not link. A dependency is named by the start
// of its import path; "." in front means a package of this module.
func TestWalls(t *testing.T) {
	kubernetes := []string{"k8s.io/", "sigs.k8s.io/", "./e2e", "./api", "./internal/operator"}
	for _, wall := range []struct {
		pkg, why string
		not      []string
		except   []string // of what not names
	}{
		{pkg: "./command", why: "the wire contract is a leaf, for any transport", not: []string{"./", "github.com/", "k8s.io/", "google.golang.org/"}, except: []string{"./command", "github.com/google/uuid"}},
		{pkg: "./client", why: "whoever commands devices does not carry one", not: slices.Concat(kubernetes, []string{"./internal/agent", "./internal/broker", "./internal/engine", "./internal/stack", "github.com/nats-io/nats-server", "github.com/docker/", "github.com/spf13/"})},
		{pkg: "./internal/agent", why: "a device has no Kubernetes, and 12 MiB", not: slices.Concat(kubernetes, []string{"./client", "./internal/broker", "./internal/stack", "./internal/cli", "github.com/nats-io/nats-server", "github.com/prometheus/", "github.com/spf13/"})},
		{pkg: "./cmd/fleet-agent", why: "a device has no Kubernetes, and 12 MiB", not: slices.Concat(kubernetes, []string{"./client", "./internal/broker", "./internal/stack", "./internal/cli", "github.com/nats-io/nats-server", "github.com/prometheus/", "github.com/spf13/"})},
		{pkg: "./cmd/fleet-callout", why: "who lets others in stays small", not: slices.Concat(kubernetes, []string{"./client", "./internal/agent", "./internal/issuer", "./internal/stack", "./internal/cli", "github.com/nats-io/nats-server"})},
		{pkg: "./api/v1alpha1", why: "whoever writes a program for the resources links the resources", not: []string{"./", "github.com/nats-io/", "sigs.k8s.io/controller-runtime", "k8s.io/client-go"}, except: []string{"./api"}},
		{pkg: "./cmd/fleet-operator", why: "the operator runs no device, no issuer and no cluster", not: []string{"./client", "./e2e", "./internal/agent", "./internal/callout", "./internal/cli", "./internal/engine", "./internal/issuer", "./internal/kubetest", "./internal/stack", "github.com/docker/", "github.com/spf13/cobra"}},
		{pkg: "./cmd/fleet-oidc", why: "the issuer knows nothing of the fleet's parts", not: slices.Concat(kubernetes, []string{"./client", "./internal/agent", "./internal/stack", "./internal/cli", "github.com/nats-io/"})},
		{pkg: "./internal/operator/rollout", why: "what decides reads and writes nothing", not: []string{"./", "github.com/nats-io/", "k8s.io/client-go/", "sigs.k8s.io/controller-runtime/"}, except: []string{"./api/v1alpha1", "./command"}},
		{pkg: "./internal/cli/rollout", why: "it knows Kubernetes and nothing of NATS", not: []string{"./e2e", "./client", "./internal/operator", "github.com/nats-io/", "sigs.k8s.io/controller-runtime/"}},
	} {
		t.Run(strings.TrimPrefix(wall.pkg, "./"), func(t *testing.T) {
			for _, dep := range dependencies(t, wall.pkg) {
				if begins(dep, wall.not) && !begins(dep, wall.except) {
					t.Errorf("%s links %s: %s; go list -deps shows the way in", wall.pkg, dep, wall.why)
				}
			}
		})
	}
}

// TestWallsCanFail: the list of dependencies holds what is known to be there.
func TestWallsCanFail(t *testing.T) {
	deps := dependencies(t, "./cmd/fleet")
	for _, want := range []string{"./client", "./internal/agent", "./e2e", "github.com/nats-io/nats-server"} {
		if !slices.ContainsFunc(deps, func(dep string) bool { return begins(dep, []string{want}) }) {
			t.Errorf("fleet does not link %s, of all things", want)
		}
	}
}

// begins tells whether dep is, or lies below, one of paths.
func begins(dep string, paths []string) bool {
	return slices.ContainsFunc(paths, func(path string) bool {
		return dep == path || strings.HasPrefix(dep, strings.TrimSuffix(path, "/")+"/")
	})
}

// dependencies are the import paths of all that pkg links outside the standard
// library, itself left out; "./…" in this module.
func dependencies(t *testing.T, pkg string) (deps []string) {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+strings.TrimPrefix(pkg, "."))
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if rest, ok := strings.CutPrefix(dep, module+"/"); ok {
			dep = "./" + rest
		}
		if dep != pkg {
			deps = append(deps, dep)
		}
	}
	return deps
}
