package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
)

type provisionCommand struct {
	app     *app
	options broker.ProvisionOptions

	render                     string
	auth, storeDir, listen     string
	serverName                 string
	calloutIssuer, calloutXKey string
	serverCert, serverKey      string
	passwords                  func() string // makes one
}

// renderFlags say nothing without --render-config.
var renderFlags = []string{"render-config", "auth", "store-dir", "listen", "server-name", "callout-issuer", "callout-xkey", "server-cert", "server-key"}

func newProvisionCommand(a *app) *cobra.Command {
	p := &provisionCommand{app: a, passwords: rand.Text}
	cmd := &cobra.Command{
		Use:   "provision",
		Short: "Make the streams and buckets of a broker, or bring them up to date",
		Long: `Makes the streams and buckets that a fleet needs, or changes them to what this version
wants, and prints what it did. It can be run again at any time: what is as it should be is
left alone. It signs in to the data account, which needs the role fleet-admin or
fleet-controller.

With --render-config it connects to nothing: it writes the configuration for a nats-server
of your own (2.15.2 or newer), with new passwords in it.`,
		Args: noArgs(""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p.render != "" {
				return p.writeConfig()
			}
			for _, name := range renderFlags {
				if cmd.Flags().Changed(name) {
					return rejected("--%s goes with --render-config FILE", name)
				}
			}
			return p.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.IntVar(&p.options.Replicas, "replicas", 1, "copies of each stream; 3 for a cluster of three servers")
	f.Int64Var(&p.options.AuditPerSubject, "audit-per-subject", 1000, "audit records kept per device and verb")
	f.DurationVar(&p.options.AuditMaxAge, "audit-max-age", 0, "how long audit records are kept; 0: no limit")
	f.StringVar(&p.render, "render-config", "", "write a nats-server configuration to `FILE` (- is stdout) and do nothing else")
	f.StringVar(&p.auth, "auth", "callout", "with --render-config: callout or userpass")
	f.StringVar(&p.storeDir, "store-dir", "/var/lib/nats", "with --render-config: JetStream's `directory` on the server")
	f.StringVar(&p.listen, "listen", "127.0.0.1:4222", "with --render-config: `host:port` of the server")
	f.StringVar(&p.serverName, "server-name", "", "with --render-config: name of the server (default fleet)")
	f.StringVar(&p.calloutIssuer, "callout-issuer", "", "with --render-config: public account `nkey` that fleet-callout keygen printed")
	f.StringVar(&p.calloutXKey, "callout-xkey", "", "with --render-config: public curve `nkey` that fleet-callout keygen printed")
	f.StringVar(&p.serverCert, "server-cert", "", "with --render-config: PEM `file` of the server's certificate, on the server")
	f.StringVar(&p.serverKey, "server-key", "", "with --render-config: PEM `file` of its key, on the server")
	return cmd
}

func (p *provisionCommand) run(ctx context.Context) error {
	if p.options.Replicas < 1 || p.options.Replicas > 5 {
		return rejected("--replicas is 1 to 5")
	}
	if p.options.AuditPerSubject < 1 {
		return rejected("--audit-per-subject must be at least 1")
	}
	if p.options.AuditMaxAge < 0 {
		return rejected("--audit-max-age cannot be negative")
	}
	var changes []broker.Change
	// Streams are made one after the other, and a cluster elects a leader for each.
	err := p.app.withData(ctx, max(p.app.timeout, 30*time.Second), func(ctx context.Context, nc *nats.Conn) (err error) {
		changes, err = broker.Provision(ctx, nc, p.options)
		return err
	})
	rows := make([][]string, 0, len(changes))
	for _, c := range changes {
		if p.app.json() {
			if err := p.app.writeJSON(struct {
				Stream string `json:"stream"`
				Action string `json:"action"`
			}{c.Stream, c.Action}); err != nil {
				return err
			}
		}
		rows = append(rows, []string{c.Stream, c.Action})
	}
	if !p.app.json() && len(rows) > 0 {
		err = errors.Join(err, p.app.table([]string{"STREAM", "ACTION"}, rows))
	}
	return err
}

func (p *provisionCommand) writeConfig() error {
	host, port, err := hostPort("listen", p.listen)
	if err != nil {
		return err
	}
	cfg := broker.Config{
		ServerName: p.serverName, Host: host, Port: port, StoreDir: p.storeDir, SystemPassword: p.passwords(),
	}
	switch p.auth {
	case "userpass":
		cfg.UserPass = &broker.UserPass{Ops: p.passwords(), Data: p.passwords(), Device: p.passwords()}
	case "callout":
		if p.calloutIssuer == "" {
			return rejected("--auth callout needs --callout-issuer, and --callout-xkey to encrypt: run fleet-callout keygen --dir DIR")
		}
		cfg.Callout = &broker.Callout{Issuer: p.calloutIssuer, XKey: p.calloutXKey, Password: p.passwords()}
	default:
		return rejected("--auth %q: there are callout and userpass", p.auth)
	}
	if p.serverCert != "" || p.serverKey != "" {
		cfg.TLS = &broker.TLS{CertFile: p.serverCert, KeyFile: p.serverKey}
	}
	text, err := cfg.Render()
	if err != nil {
		return &command.Error{Outcome: command.OutcomeRejected, Err: err}
	}
	if p.render == "-" {
		_, err := fmt.Fprint(p.app.stdout, text)
		return err
	}
	// Never over a file that is there: its passwords are in use somewhere.
	f, err := os.OpenFile(p.render, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return rejected("%s is there already, and its passwords with it; choose another name or remove it", p.render)
	}
	if err != nil {
		return rejected("cannot write the configuration: %v", err)
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	p.app.say("wrote " + p.render + " (mode 0600, it holds passwords); start it with: nats-server -c " + p.render)
	return nil
}
