package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/stack"
)

type upCommand struct {
	app *app

	devices       int
	auth          string
	dataDir       string
	port          int
	runtime       string
	exitAfterPing bool
	tokenLifetime time.Duration

	id string // of this run, in the context file

	mu      sync.Mutex
	stack   *stack.Stack // nil until it is up
	stopped bool         // the context file is not to be written any more
	context string       // path of the context file; empty: there is no place for one
	written bool         // by this run
}

func newUpCommand(a *app) *cobra.Command {
	u := &upCommand{app: a, id: rand.Text()}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a whole fleet on this machine",
		Long: `Runs the whole system in this process, with nothing installed: a NATS server with JetStream,
a token issuer, the auth callout and as many agents as you like, with real sockets, real
tokens and real permissions. It pings every device once, and stays until Ctrl-C.

Other terminals need no flags meanwhile: fleet ping vm-device-00`,
		Args: noArgs("for more devices say --devices N"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if u.dataDir == "" && cmd.Flags().Changed("data-dir") {
				return rejected("--data-dir is empty; leave it out to keep nothing") // as of a variable that is not set
			}
			return u.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.IntVar(&u.devices, "devices", 3, "how many devices")
	f.StringVar(&u.auth, "auth", string(stack.Callout), "how to sign in: callout (tokens) or userpass (static users)")
	f.StringVar(&u.dataDir, "data-dir", "", "keep all state in `DIR` over restarts (default: a temporary directory, removed at the end)")
	f.IntVar(&u.port, "port", 4222, "port of the NATS server on 127.0.0.1; 0: any free one")
	f.StringVar(&u.runtime, "runtime", "auto", "container engine of the agents: auto, off or a `SOCKET` such as unix:///run/podman/podman.sock")
	f.BoolVar(&u.exitAfterPing, "exit-after-ping", false, "end once every device was pinged, with the exit code of the pings")
	f.DurationVar(&u.tokenLifetime, "token-lifetime", stack.DefaultTokenLifetime, "how long tokens live; they are renewed before they expire")
	return cmd
}

func (u *upCommand) options() (stack.Options, error) {
	o := stack.Options{
		Devices: u.devices, Auth: stack.Auth(u.auth), DataDir: u.dataDir, Port: u.port,
		TokenLifetime: u.tokenLifetime, OnAdminToken: u.newAdminToken, Logger: u.app.log,
	}
	switch {
	case u.devices < 1:
		return o, rejected("--devices must be at least 1")
	case u.port < 0 || u.port > 65535:
		return o, rejected("--port is 0 to 65535")
	case u.tokenLifetime < 5*time.Second:
		return o, rejected("--token-lifetime must be at least 5s")
	case o.Auth != stack.Callout && o.Auth != stack.UserPass:
		return o, rejected("--auth %q: there are callout and userpass", u.auth)
	}
	if u.port == 0 {
		o.Port = stack.AnyPort
	}
	var err error
	o.RuntimeSocket, err = runtimeSocket(u.runtime, u.app.getenv, socketThere, u.app.log)
	return o, err
}

func (u *upCommand) run(ctx context.Context) (err error) {
	opts, err := u.options()
	if err != nil {
		return err
	}
	ctx, unread := context.WithCancelCause(ctx)
	defer unread(nil)
	u.app.stdout = watchedWriter{u.app.stdout, unread}
	s, err := stack.Start(ctx, opts)
	if err != nil {
		if ctx.Err() != nil {
			u.app.log.Info("interrupted during the start")
			return nil // Ctrl-C is not a fault
		}
		return err
	}
	defer func() { err = errors.Join(err, u.down(s)) }()

	unpublished := u.publish(s)
	if unpublished != nil {
		u.app.say(oneLine(unpublished.Error()) + "; the other commands reach this fleet with " + u.signInFlags(s))
	}
	if err := u.announce(s, unpublished); err != nil {
		return err
	}
	pings := u.app.newPingPrinter(s.NATSURL())
	err = pings.run(ctx, s.Client(), s.DeviceIDs(), client.FanOut{Timeout: u.app.timeout})
	switch {
	case ctx.Err() != nil:
		return ended(ctx)
	case u.exitAfterPing:
		return err
	}
	if err != nil {
		u.app.report(err) // the fleet stays up: it is there to be looked into
	}
	if !u.app.json() {
		flags := ""
		if unpublished != nil {
			flags = " " + u.signInFlags(s)
		}
		fmt.Fprintf(u.app.stdout, "[fleet] up; Ctrl-C ends it. In another terminal: fleet ping %s%s\n", s.DeviceIDs()[0], flags)
	}
	select {
	case <-ctx.Done():
		return ended(ctx)
	case err := <-s.Failed():
		return fmt.Errorf("a part of the fleet ended: %w", err)
	}
}

// ended is nil after Ctrl-C, and the fault where nobody reads stdout any more.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// watchedWriter tells that writing failed, so that whoever goes on in the
// background ends.
type watchedWriter struct {
	io.Writer
	failed context.CancelCauseFunc
}

func (w watchedWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		err = fmt.Errorf("write to stdout: %w", err)
		w.failed(err)
	}
	return n, err
}

// signInFlags are the flags that stand in for the context file. What is secret in
// them is in the lines above.
func (u *upCommand) signInFlags(s *stack.Stack) string {
	flags := "--server " + s.NATSURL() + " --token TOKEN"
	if user, _ := s.UserPassword(access.Ops); user != "" {
		flags = "--server " + s.NATSURL() + " --user " + user + " --password PASSWORD"
	}
	if ca := s.CAFile(); ca != "" {
		flags += " --ca " + ca
	}
	return flags
}

// announce prints how other programs connect. unpublished says why there is no
// context file of this fleet.
func (u *upCommand) announce(s *stack.Stack, unpublished error) error {
	user, password := s.UserPassword(access.Ops)
	if u.app.json() {
		why := ""
		if unpublished != nil {
			why = oneLine(unpublished.Error())
		}
		return u.app.writeJSON(struct {
			NATS        string   `json:"nats"`
			AdminToken  string   `json:"admin_token,omitempty"`
			User        string   `json:"user,omitempty"`
			Password    string   `json:"password,omitempty"`
			InboxPrefix string   `json:"inbox_prefix"`
			Devices     []string `json:"devices"`
			NoContext   string   `json:"no_context,omitempty"` // why
		}{s.NATSURL(), s.AdminToken(), user, password, s.InboxPrefix(), s.DeviceIDs(), why})
	}
	w := u.app.stdout
	fmt.Fprintf(w, "[fleet] NATS: %s\n", s.NATSURL())
	if user != "" {
		fmt.Fprintf(w, "[fleet] user: %s\n[fleet] password: %s\n", user, password)
	} else {
		fmt.Fprintf(w, "[fleet] admin token: %s\n", s.AdminToken())
	}
	fmt.Fprintf(w, "[fleet] inbox prefix: %s            (for other NATS clients)\n", s.InboxPrefix())
	_, err := fmt.Fprintf(w, "[fleet] devices: %s\n", strings.Join(s.DeviceIDs(), ", "))
	return err
}

// publish writes the context file, and from now on again with each new token. An
// error says why there is none, which is no fault of the fleet.
func (u *upCommand) publish(s *stack.Stack) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stack = s
	path, err := u.app.contextPath()
	if err != nil {
		return fmt.Errorf("no context file: %w", err)
	}
	u.context = path
	return u.writeContext(s.AdminToken())
}

// newAdminToken keeps the context file fresh.
func (u *upCommand) newAdminToken(token string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stack == nil || u.stopped {
		return
	}
	var kept keptError
	if err := u.writeContext(token); err != nil && !errors.As(err, &kept) { // that was said at the start
		u.app.log.Error("other terminals will need the new token by hand", "error", err)
	}
	if !u.app.json() {
		fmt.Fprintf(u.app.stdout, "[fleet] admin token: %s\n", token)
	}
}

// writeContext is called with mu held, so that no token overtakes a later one.
func (u *upCommand) writeContext(token string) error {
	if u.context == "" {
		return nil
	}
	s := u.stack
	c := contextFile{Server: s.NATSURL(), CA: s.CAFile(), Token: token, Up: &upMark{PID: os.Getpid(), ID: u.id}}
	c.User, c.Password = s.UserPassword(access.Ops)
	c.DataUser, c.DataPassword = s.UserPassword(access.Data)
	err := c.claim(u.context)
	u.written = u.written || err == nil
	return err
}

// down ends the fleet and removes the context file if it is this run's.
func (u *upCommand) down(s *stack.Stack) error {
	u.mu.Lock()
	u.stopped = true
	path, written := u.context, u.written
	u.mu.Unlock()
	if !written {
		return s.Close()
	}
	return errors.Join(removeContext(path, u.id), s.Close())
}
