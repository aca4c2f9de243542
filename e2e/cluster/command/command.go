// Package command is `fleet cluster`: the local Kubernetes cluster for people.
//
//	root.AddCommand(command.New(command.Settings{JSON: func() bool { return output == "json" }}))
//
// Results go to stdout, progress to stderr. Errors are returned, not printed: what
// they say is what a person is to read.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/e2e/cluster/local"
)

// Settings are what the program that has the command decides.
type Settings struct {
	// JSON says whether results are wanted as JSON, one object on a line; nil means
	// that they are not. It is asked after flags have been read.
	JSON func() bool

	// Logger gives the log of what happened in detail; nil means nothing is logged.
	// It is asked after flags have been read.
	Logger func() *slog.Logger
}

// New returns the command with its subcommands.
func New(s Settings) *cobra.Command {
	if s.JSON == nil {
		s.JSON = func() bool { return false }
	}
	if s.Logger == nil {
		s.Logger = func() *slog.Logger { return nil }
	}
	c := &command{settings: s}
	root := &cobra.Command{
		Use:   "cluster",
		Short: "A Kubernetes cluster on this machine",
		Long: `A real Kubernetes cluster of one node on this Linux machine, for trials and tests.

It needs root, containerd, runc, the CNI plugins and iptables, and nothing else:
its programs are built from source the first time, which takes some minutes. It
runs until it is taken down, and keeps nothing after that.`,
		Args: cobra.NoArgs,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.dir, "dir", local.DefaultDir, "directory of the cluster")
	flags.StringVar(&c.name, "name", local.DefaultName, "name of the cluster and of its node")
	flags.StringVar(&c.network, "network", local.DefaultNetwork, "IPv4 /16 for node, Pods and Services")
	flags.StringVar(&c.source, "source", "", "folder of the sources of its programs (default: found in the checkout)")
	root.AddCommand(
		c.newUp(),
		&cobra.Command{Use: "down", Short: "End the cluster and remove every trace of it", Args: cobra.NoArgs, RunE: c.down},
		&cobra.Command{Use: "status", Short: "Say whether the cluster is up, and what runs", Args: cobra.NoArgs, RunE: c.status},
		&cobra.Command{Use: "kubeconfig", Short: "Print the kubeconfig of the cluster", Args: cobra.NoArgs, RunE: c.kubeconfig},
		&cobra.Command{Use: "load FILE...", Short: "Load images from archives (podman save; - is stdin)", Args: cobra.MinimumNArgs(1), RunE: c.load},
		&cobra.Command{
			Use: "kubectl [--] ARGS...", Short: "Run kubectl on the cluster",
			Example: "  fleet cluster kubectl -- get pods -A",
			Args:    cobra.ArbitraryArgs, RunE: c.kubectl,
		},
	)
	return root
}

// command holds the flags.
type command struct {
	settings                   Settings
	dir, name, network, source string
	insecureRegistries         []string
}

func (c *command) newUp() *cobra.Command {
	up := &cobra.Command{Use: "up", Short: "Start the cluster, unless it is up", Args: cobra.NoArgs, RunE: c.up}
	up.Flags().StringSliceVar(&c.insecureRegistries, "insecure-registry", nil, "registry without TLS that images may be pulled from, as HOST:PORT")
	return up
}

func (c *command) provider(progress io.Writer) (*local.Provider, error) {
	network, err := netip.ParsePrefix(c.network)
	if err != nil {
		return nil, fmt.Errorf("--network %q: want an IPv4 network such as %s", c.network, local.DefaultNetwork)
	}
	return local.New(local.Options{
		Dir: c.dir, Name: c.name, Network: network, Source: c.source, InsecureRegistries: c.insecureRegistries,
		Progress: progress, Logger: c.settings.Logger(),
	}), nil
}

func (c *command) up(cmd *cobra.Command, _ []string) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	provider, err := c.provider(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	begin := time.Now()
	up, err := provider.Up(ctx)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	if c.settings.JSON() {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{
			"state": local.StateUp, "kubeconfig": up.Kubeconfig(), "node_address": up.NodeAddresses()[0], "took_ms": took.Milliseconds(),
		})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "[cluster] up after %.1f s\n[cluster] kubeconfig: %s\n[cluster] node: %s (NodePorts answer there)\n",
		took.Seconds(), up.Kubeconfig(), up.NodeAddresses()[0])
	return err
}

func (c *command) down(cmd *cobra.Command, _ []string) error {
	provider, err := c.provider(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if err := provider.Down(cmd.Context()); err != nil {
		return err
	}
	if c.settings.JSON() {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"state": local.StateDown})
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), "[cluster] down")
	return err
}

func (c *command) status(cmd *cobra.Command, _ []string) error {
	provider, err := c.provider(io.Discard)
	if err != nil {
		return err
	}
	s, err := provider.Status(cmd.Context())
	if err != nil {
		return err
	}
	if c.settings.JSON() {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(s)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("state", s.State)
	row("name", s.Name)
	row("directory", s.Dir)
	if s.State == local.StateUp || s.State == local.StateStarting {
		row("started", s.Started.Local().Format(time.DateTime))
		row("supervisor", s.PID)
		row("node", s.Node)
		row("kubeconfig", s.Kubeconfig)
		row("kubernetes", s.Version)
	}
	for _, component := range s.Components {
		state := "runs"
		if component.PID == 0 {
			state = "does not run"
		}
		if component.Restarts > 0 {
			state += fmt.Sprintf(", %d restarts, last: %s", component.Restarts, component.LastExit)
		}
		row("  "+component.Name, state)
	}
	return w.Flush()
}

func (c *command) running(ctx context.Context, progress io.Writer) (*local.Cluster, error) {
	provider, err := c.provider(progress)
	if err != nil {
		return nil, err
	}
	return provider.Running(ctx)
}

func (c *command) kubeconfig(cmd *cobra.Command, _ []string) error {
	up, err := c.running(cmd.Context(), io.Discard)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(up.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w: only root may", err)
	}
	_, err = cmd.OutOrStdout().Write(content)
	return err
}

func (c *command) load(cmd *cobra.Command, args []string) error {
	up, err := c.running(cmd.Context(), io.Discard)
	if err != nil {
		return err
	}
	for _, path := range args {
		archive := cmd.InOrStdin()
		if path != "-" {
			file, err := os.Open(path)
			if err != nil {
				return fmt.Errorf("load images: %w", err)
			}
			defer file.Close()
			archive = file
		}
		if err := up.LoadArchive(cmd.Context(), archive); err != nil {
			return fmt.Errorf("load images of %s: %w", path, err)
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "loaded %s\n", path)
	}
	return nil
}

// ExitError is the exit code of a command that was run for the user, which has
// said itself what is wrong.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("kubectl: exit code %d", e.Code) }

func (c *command) kubectl(cmd *cobra.Command, args []string) error {
	up, err := c.running(cmd.Context(), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	run, err := up.Kubectl(cmd.Context(), args...)
	if err != nil {
		return err
	}
	run.Stdin, run.Stdout, run.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	err = run.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &ExitError{Code: exit.ExitCode()}
	}
	if err != nil {
		return fmt.Errorf("run kubectl: %w", err)
	}
	return nil
}
