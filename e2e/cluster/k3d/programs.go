package k3d

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/internal/atomicfile"
)

// Label and its value on the containers of a cluster that this package made.
const (
	madeByLabel = "dev.harmony-fleet.made-by"
	madeBy      = "e2e"
)

// programs runs k3d and docker for the cluster that the options describe, which
// are complete.
type programs struct{ Options }

// checkTimeout bounds the look whether a Docker engine answers.
const checkTimeout = 10 * time.Second

// check wants both programs on PATH and an engine that answers.
func (p programs) check(ctx context.Context) error {
	for program, from := range map[string]string{"k3d": "https://k3d.io", "docker": "https://docs.docker.com/engine/install"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("k3d cluster: the program %s is not on PATH: install it (%s), or use another cluster", program, from)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if _, err := p.run(ctx, nil, "docker", "version", "--format", "{{.Server.Version}}"); err != nil {
		return fmt.Errorf("k3d cluster: no Docker engine answers: start it, or set DOCKER_HOST: %w", err)
	}
	return nil
}

// listed is what is used of an element of `k3d cluster list -o json` (v5). Fields
// without a tag have none in k3d either.
type listed struct {
	Name           string `json:"name"`
	ServersRunning int    `json:"serversRunning"`
	ServersCount   int    `json:"serversCount"`
	AgentsRunning  int    `json:"agentsRunning"`
	AgentsCount    int    `json:"agentsCount"`
	Nodes          []struct {
		Name string `json:"name"`
		Role string `json:"role"` // server, agent, loadbalancer
		IP   struct{ IP string }
	} `json:"nodes"`
}

// running says whether all of it runs.
func (l *listed) running() bool {
	return l.ServersCount > 0 && l.ServersRunning == l.ServersCount && l.AgentsRunning == l.AgentsCount
}

// nodes are the containers that run Pods.
func (l *listed) nodes() (names []string) {
	for _, n := range l.Nodes {
		if runsPods(n.Role) {
			names = append(names, n.Name)
		}
	}
	return names
}

// addresses are the addresses of these containers.
func (l *listed) addresses() (list []string) {
	for _, n := range l.Nodes {
		if runsPods(n.Role) && n.IP.IP != "" {
			list = append(list, n.IP.IP)
		}
	}
	return list
}

func runsPods(role string) bool { return role == "server" || role == "agent" }

// list returns the cluster as k3d knows it, nil where it does not.
func (p programs) list(ctx context.Context) (*listed, error) {
	output, err := p.run(ctx, nil, "k3d", "cluster", "list", "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("k3d cluster: list clusters: %w", err)
	}
	var all []*listed
	if err := json.Unmarshal([]byte(output), &all); err != nil {
		return nil, fmt.Errorf("k3d cluster: read the list of clusters: %w: version 5 of k3d is needed", err)
	}
	i := slices.IndexFunc(all, func(l *listed) bool { return l.Name == p.Name })
	if i < 0 {
		return nil, nil
	}
	return all[i], nil
}

// create makes the cluster, without what tests do not use, and leaves the user's
// own kubeconfig alone.
func (p programs) create(ctx context.Context) error {
	_, err := p.run(ctx, nil, "k3d", "cluster", "create", p.Name,
		"--servers", "1", "--wait", "--timeout", p.Timeout.String(),
		"--kubeconfig-update-default=false", "--kubeconfig-switch-context=false",
		"--runtime-label", madeByLabel+"="+madeBy+"@all",
		"--k3s-arg", "--disable=traefik@server:*",
		"--k3s-arg", "--disable=metrics-server@server:*",
	)
	if err != nil {
		return fmt.Errorf("k3d cluster: make %s: %w", p.Name, err)
	}
	return nil
}

func (p programs) start(ctx context.Context) error {
	if _, err := p.run(ctx, nil, "k3d", "cluster", "start", p.Name, "--wait", "--timeout", p.Timeout.String()); err != nil {
		return fmt.Errorf("k3d cluster: start %s: %w: delete it with: k3d cluster delete %[1]s", p.Name, err)
	}
	return nil
}

func (p programs) delete(ctx context.Context) error {
	if _, err := p.run(ctx, nil, "k3d", "cluster", "delete", p.Name); err != nil {
		return fmt.Errorf("k3d cluster: delete %s: %w", p.Name, err)
	}
	return nil
}

// isOurs says whether the cluster carries the label of this package. k3d lists its
// own labels only.
func (p programs) isOurs(ctx context.Context, l *listed) (bool, error) {
	nodes := l.nodes()
	if len(nodes) == 0 {
		return false, nil
	}
	output, err := p.run(ctx, nil, "docker", "inspect", "--format", fmt.Sprintf("{{index .Config.Labels %q}}", madeByLabel), nodes[0])
	if err != nil {
		return false, fmt.Errorf("k3d cluster: look who made %s: %w", p.Name, err)
	}
	return strings.TrimSpace(output) == madeBy, nil
}

// writeKubeconfig replaces the file at once: another process may be reading it.
func (p programs) writeKubeconfig(ctx context.Context, path string) error {
	content, err := p.run(ctx, nil, "k3d", "kubeconfig", "get", p.Name)
	if err != nil {
		return fmt.Errorf("k3d cluster: fetch kubeconfig of %s: %w", p.Name, err)
	}
	if err := atomicfile.Write(path, []byte(content)); err != nil {
		return fmt.Errorf("k3d cluster: %w", err)
	}
	return nil
}

// ctr returns a function that runs ctr in a node, the one that k3s brings along.
func (p programs) ctr(node string) func(context.Context, io.Reader, ...string) (string, error) {
	return func(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
		command := []string{"exec"}
		if stdin != nil {
			command = append(command, "-i")
		}
		command = append(command, node, "ctr", "-n", "k8s.io")
		return p.run(ctx, stdin, "docker", append(command, args...)...)
	}
}

// stopTimeout is how long a program has to end after it was interrupted.
const stopTimeout = 5 * time.Second

// run runs a program and returns what it wrote to stdout. The error has the last
// line of what it wrote to stderr, which with k3d is the one that counts.
func (p programs) run(ctx context.Context, stdin io.Reader, program string, args ...string) (string, error) {
	p.Logger.Debug("run", "program", program, "args", args)
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopTimeout
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	line := program
	if len(args) > 1 {
		line += " " + args[0] + " " + args[1]
	}
	if said := lastLine(stderr.String()); said != "" {
		return "", fmt.Errorf("%s: %w: %s", line, err, said)
	}
	return "", fmt.Errorf("%s: %w", line, err)
}

// lastLine returns the last line of text that says something.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
