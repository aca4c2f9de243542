package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/atomicfile"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/brokersetup"
)

// kubernetesTimeout bounds what `fleet broker` asks of a cluster.
const kubernetesTimeout = 30 * time.Second

func newBrokerCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "broker",
		Short: "Secrets and configuration of a broker of one's own, as the Helm chart has them",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBrokerSecretsCommand(a), newBrokerConfigCommand(a))
	return cmd
}

type brokerSecrets struct {
	app               *app
	dir               string
	secret, namespace string
	hosts             []string
}

func newBrokerSecretsCommand(a *app) *cobra.Command {
	b := &brokerSecrets{app: a}
	cmd := &cobra.Command{
		Use:   "secrets (--dir DIR | --kubernetes-secret NAME) --host HOST...",
		Short: "Make the secrets that are missing: passwords, seeds, authority, certificate",
		Long: `Makes what a broker and its callout need and do not have yet: the passwords of the static
users, the callout's seeds, an authority and the server's certificate, and prints the
names of what it made. What is there stays. The certificate is made anew in its last
third, and where it is to have other names. Run it again from time to time.

They are files in a directory, or keys of one Kubernetes Secret.`,
		Args: noArgs(""),
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&b.dir, "dir", "", "`directory` of the files, made with mode 0700")
	f.StringVar(&b.secret, "kubernetes-secret", "", "`name` of the Secret; the cluster is that of $KUBECONFIG, or the one that this runs in")
	f.StringVarP(&b.namespace, "namespace", "n", "", "namespace of the Secret (default that of the kubeconfig)")
	f.StringSliceVar(&b.hosts, "host", nil, "`name` or address under which the broker is called; may be repeated, and begin with *.")
	return cmd
}

func (b *brokerSecrets) run(ctx context.Context) error {
	if (b.dir == "") == (b.secret == "") {
		return rejected("say where the secrets are: --dir DIR or --kubernetes-secret NAME")
	}
	if len(b.hosts) == 0 {
		return rejected("--host: under which names is the broker called?")
	}
	options := brokersetup.Options{Hosts: b.hosts}
	changed, err := b.complete(ctx, options)
	if err != nil {
		return err
	}
	if b.app.json() {
		return b.app.writeJSON(struct {
			Made []string `json:"made"`
		}{append([]string{}, changed...)})
	}
	for _, name := range changed {
		fmt.Fprintln(b.app.stdout, name)
	}
	return nil
}

func (b *brokerSecrets) complete(ctx context.Context, options brokersetup.Options) ([]string, error) {
	if b.secret != "" {
		config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil)
		namespace := b.namespace
		if namespace == "" {
			var err error
			if namespace, _, err = config.Namespace(); err != nil {
				return nil, fmt.Errorf("kubeconfig: %w", err)
			}
		}
		rest, err := config.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("kubeconfig: %w", err)
		}
		kube, err := kubernetes.NewForConfig(rest)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, kubernetesTimeout)
		defer cancel()
		return brokersetup.CompleteSecret(ctx, kube, namespace, b.secret, options)
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the secrets: %w", err)
	}
	files, err := readFiles(b.dir)
	if err != nil {
		return nil, err
	}
	changed, err := brokersetup.Complete(files, options)
	if err != nil {
		return nil, err
	}
	for _, name := range changed {
		if err := atomicfile.Write(filepath.Join(b.dir, name), files[name]); err != nil {
			return nil, fmt.Errorf("write a secret: %w", err)
		}
	}
	return changed, nil
}

// readFiles reads the files of a directory; a Secret's mount has links to files.
func readFiles(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, fmt.Errorf("read the secrets: %w", err)
		}
		if files[e.Name()], err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("read the secrets: %w", err)
		}
	}
	return files, nil
}

type brokerConfig struct {
	app                    *app
	secrets, auth, out     string
	storeDir, listen, name string
	monitor                int
	clusterListen          string
	routes                 []string
}

func newBrokerConfigCommand(a *app) *cobra.Command {
	b := &brokerConfig{app: a}
	cmd := &cobra.Command{
		Use:   "config --secrets DIR --out FILE",
		Short: "Write the configuration of a nats-server that has these secrets",
		Long: `Writes the configuration for a nats-server (2.15.2 or newer) whose secrets fleet broker
secrets has made: accounts, exports, imports, users, TLS, the callout's public keys. The
server must find the secrets at the same path.`,
		Args: noArgs(""),
		RunE: func(*cobra.Command, []string) error { return b.run() },
	}
	f := cmd.Flags()
	f.StringVar(&b.secrets, "secrets", "", "`directory` of the secrets")
	f.StringVar(&b.out, "out", "", "`file` to write, mode 0600, over the one that is there (- is stdout)")
	f.StringVar(&b.auth, "auth", "callout", "callout or userpass")
	f.StringVar(&b.storeDir, "store-dir", "/var/lib/nats", "JetStream's `directory` on the server")
	f.StringVar(&b.listen, "listen", "127.0.0.1:4222", "`host:port` of the server")
	f.IntVar(&b.monitor, "monitor-port", 0, "`port` of the monitoring endpoint; 0: none")
	f.StringVar(&b.name, "server-name", "", "name of the server (default fleet); each server of a cluster has another")
	f.StringVar(&b.clusterListen, "cluster-listen", "", "`host:port` for the other servers of a cluster; empty: a single server")
	f.StringSliceVar(&b.routes, "route", nil, "`nats-route://host:port` of a server of the cluster; may be repeated")
	return cmd
}

func (b *brokerConfig) run() error {
	if b.secrets == "" || b.out == "" {
		return rejected("--secrets DIR and --out FILE are needed")
	}
	files, err := readFiles(b.secrets)
	if err != nil {
		return err
	}
	cfg := broker.Config{ServerName: b.name, StoreDir: b.storeDir, HTTPPort: b.monitor}
	if cfg.Host, cfg.Port, err = hostPort("listen", b.listen); err != nil {
		return err
	}
	if b.clusterListen != "" {
		cluster := &broker.Cluster{Name: "fleet", Routes: b.routes}
		if cluster.Host, cluster.Port, err = hostPort("cluster-listen", b.clusterListen); err != nil {
			return err
		}
		cfg.Cluster = cluster
	}
	if cfg, err = brokersetup.Config(files, b.secrets, b.auth, cfg); err != nil {
		return &command.Error{Outcome: command.OutcomeRejected, Err: err}
	}
	text, err := cfg.Render()
	if err != nil {
		return &command.Error{Outcome: command.OutcomeRejected, Err: err}
	}
	if b.out == "-" {
		_, err := fmt.Fprint(b.app.stdout, text)
		return err
	}
	if err := atomicfile.Write(b.out, []byte(text)); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

func hostPort(flag, value string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(value)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil || port < 1 || port > 65535 {
		return "", 0, rejected("--%s %q is not host:port", flag, value)
	}
	return host, port, nil
}
