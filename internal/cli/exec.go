package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

// where are the flags that say where a program runs.
type where struct {
	container, user, workdir string
	host                     bool
	env                      []string
}

func (w *where) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.container, "container", "", "run in this `container`: a service, or deployment/service (default: the only one)")
	f.BoolVar(&w.host, "host", false, "run on the device itself, where its agent's policy allows that")
	f.StringVar(&w.user, "as-user", "", "run as this `user` of the container")
	f.StringVar(&w.workdir, "workdir", "", "start in this `directory`")
	f.StringArrayVar(&w.env, "env", nil, "set `NAME=VALUE` in the environment; may be repeated")
}

func (w *where) check() (map[string]string, error) {
	if w.container != "" && w.host {
		return nil, usageError{errors.New("--container and --host: say one of them")}
	}
	env := map[string]string{}
	for _, pair := range w.env {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, usageError{errors.New("--env wants NAME=VALUE")} // the value may be a secret
		}
		env[name] = value
	}
	return env, nil
}

type execCommand struct {
	app       *app
	where     where
	stdin     bool
	tty       bool
	killAfter time.Duration

	selection selection
	fanOut    fanOutFlags
	several   []string // flags given that only several devices have a use for
}

func newExecCommand(a *app) *cobra.Command {
	e := &execCommand{app: a}
	cmd := &cobra.Command{
		Use:   "exec DEVICE... | --all | -l k=v [--container NAME] [-i] [-t] -- PROGRAM [ARG...]",
		Short: "Run a program in a container, or on a device, or on many",
		Long: `Runs a program and connects it to this terminal or pipe. The exit code is the program's;
255 means that fleet itself failed, and stderr says how. No shell looks at the arguments:
for one, run sh -c '…'.

Ctrl-C sends an interrupt to the program; a second one ends fleet, and with it the program.
Where the connection is lost for good, fleet result tells later how it ended.

On several devices it is a job. Each line of output comes behind its device; stderr says how
devices ended that did not exit with 0, and how many ended how. The exit code is then 0 where
all exited with 0, and else the largest of theirs in the table of fleet ping, where another
exit code counts as 1. Ctrl-C asks no further device and lets those at work end; a second one
leaves, and devices end what ran after 30 s. fleet job resume goes on, with what still runs
too; no device runs the program twice.`,
		Example: `  fleet exec vm-device-00 --container web -- ls -l /srv
  fleet exec --all --host --concurrency 200 --abort-after 5% -- systemctl is-active fleet-agent
  tar c . | fleet exec vm-device-00 --container web -i -- tar x -C /srv`,
		Annotations: map[string]string{ownCode: "yes"},
		Args: func(cmd *cobra.Command, args []string) error {
			if devices, argv := e.split(cmd, args); len(argv) == 0 || len(devices) == 0 && !e.selection.several() {
				return errors.New("say on which device, and behind -- what to run: fleet exec DEVICE -- PROGRAM [ARG...]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			devices, argv := e.split(cmd, args)
			if devices = distinct(devices); len(devices) != 1 || e.selection.several() {
				return e.runMany(cmd.Context(), devices, argv)
			}
			e.several = e.fanOut.set(cmd)
			return e.app.own(e.run(cmd.Context(), devices[0], argv))
		},
	}
	e.where.register(cmd)
	e.selection.register(cmd)
	e.fanOut.register(cmd, client.DefaultConcurrency)
	f := cmd.Flags()
	f.SetInterspersed(true)
	f.BoolVarP(&e.stdin, "stdin", "i", false, "pass standard input on")
	f.BoolVarP(&e.tty, "tty", "t", false, "give the program a terminal; needs -i and a terminal here")
	f.DurationVar(&e.killAfter, "kill-after", 0, "kill the program when it has run so long (default: the agent's policy)")
	return cmd
}

// split tells devices and program apart: at the --, or behind the first device.
func (e *execCommand) split(cmd *cobra.Command, args []string) (devices, argv []string) {
	at := cmd.ArgsLenAtDash()
	if at < 0 {
		at = min(1, len(args))
		if e.selection.several() {
			at = 0
		}
	}
	return args[:at], args[at:]
}

// runMany runs the program on several devices, as a job.
func (e *execCommand) runMany(ctx context.Context, named, argv []string) error {
	selector, err := e.selection.check(named)
	if err != nil {
		return err
	}
	env, err := e.where.check()
	if err != nil {
		return err
	}
	fanOut, err := e.fanOut.settings(e.app.timeout)
	switch {
	case err != nil:
		return err
	case e.killAfter < 0:
		return rejected("--kill-after is negative")
	case e.stdin || e.tty:
		return usageError{errors.New("-i and -t are for one device")}
	}
	c, s, done, err := e.app.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	devices, err := e.selection.devices(ctx, e.app, c, named, selector)
	if err != nil {
		return err
	}
	spec := jobSpec{
		Schema: command.Schema, Server: s.server, Selection: e.selection.String(named), Devices: devices, Concurrency: fanOut.Window, Rate: fanOut.Rate,
		Program: jobProgram{
			Container: e.where.container, Host: e.where.host, Argv: argv, Env: env, Workdir: e.where.workdir, User: e.where.user,
			TimeoutMS: e.killAfter.Milliseconds(), Window: command.DefaultExecWindow,
		},
	}
	if fanOut.Abort != nil {
		spec.AbortAfter, spec.AbortMin = &fanOut.Abort.Share, fanOut.Abort.Min
	}
	job, err := c.NewJob(ctx)
	if err != nil {
		return err
	}
	spec.ID, spec.Secret = job.ID, job.Secret
	if spec.UID, err = c.UID(); err != nil {
		return err
	}
	store, err := e.app.jobStore()
	if err != nil {
		return err
	}
	running, err := store.create(spec)
	if err != nil {
		return err
	}
	defer running.close()
	return e.app.runJob(ctx, c, s.server, running)
}

func (e *execCommand) run(ctx context.Context, device string, argv []string) error {
	if err := command.CheckDeviceID(device); err != nil {
		return err
	}
	if len(e.several) > 0 {
		return usageError{fmt.Errorf("%s: for several devices", strings.Join(e.several, ", "))}
	}
	env, err := e.where.check()
	switch {
	case err != nil:
		return err
	case e.killAfter < 0:
		return rejected("--kill-after is negative")
	case e.tty && !e.stdin:
		return usageError{errors.New("-t needs -i: a terminal is typed into")}
	case e.app.json() && e.stdin:
		return usageError{errors.New("-o json does not go with -i: its one object holds the whole output")}
	}
	o := client.ExecOptions{
		Container: e.where.container, Host: e.where.host, Argv: argv, Env: env, Workdir: e.where.workdir, User: e.where.user,
		Timeout: e.killAfter,
	}
	c, _, done, err := e.app.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	if e.app.json() {
		return e.output(ctx, c, device, o)
	}
	o.Stdout, o.Stderr = e.app.stdout, e.app.stderr
	if !e.tty {
		if e.stdin {
			o.Stdin = e.app.stdin
		}
		run, signals, stop := interruptible(ctx)
		defer stop()
		o.Signals = signals
		return programEnded(c.Exec(run, device, o))
	}
	t, err := e.app.openTerminal(ctx)
	if err != nil {
		return err
	}
	defer t.restore()
	o.Stdin, o.TTY, o.Resize, o.Stderr = t.input(), t.size(), t.resizes, nil
	return t.ended(c.Exec(t.ctx, device, o))
}

// output runs a program and prints what it wrote as one object.
func (e *execCommand) output(ctx context.Context, c *client.Client, device string, o client.ExecOptions) error {
	began := time.Now()
	reply, err := c.Output(ctx, device, o)
	if err != nil {
		return err
	}
	us := time.Since(began).Microseconds()
	if err := e.app.writeJSON(result{DeviceID: device, Outcome: command.OutcomeOK, RTT: &us, Reply: reply}); err != nil {
		return err
	}
	if reply.ExitCode != 0 {
		return exitError{code: reply.ExitCode}
	}
	return nil
}

// ownFailure is the exit code of exec and shell where they failed themselves:
// the others are the program's.
const ownFailure = 255

// ownCode marks commands of which every failure of their own, of the command line
// too, has that code, unless they are about several devices.
const ownCode = "own exit code"

// own gives an error of exec or shell its exit code.
func (a *app) own(err error) error {
	var exit exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	a.report(err)
	return exitError{code: ownFailure}
}

// programEnded is the end of a program as the command's.
func programEnded(r client.ExecResult, err error) error {
	if err != nil {
		return err
	}
	if r.ExitCode != 0 {
		return exitError{code: r.ExitCode}
	}
	return nil
}

// interruptGrace is how long a program that was interrupted may go on.
const interruptGrace = 10 * time.Second

// interruptible turns the end of ctx, by Ctrl-C or SIGTERM, into a signal to the
// program. Only when that does not end it the context that is given ends.
func interruptible(ctx context.Context) (context.Context, <-chan string, func()) {
	run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	signals := make(chan string, 1)
	stop := context.AfterFunc(ctx, func() {
		signals <- signalName(context.Cause(ctx))
		kill := time.AfterFunc(interruptGrace, func() { cancel(context.Cause(ctx)) })
		context.AfterFunc(run, func() { kill.Stop() })
	})
	return run, signals, func() {
		stop()
		cancel(nil)
	}
}

// signalName is the signal that ended a context, INT where that is not known.
func signalName(cause error) string {
	for name, sig := range map[string]syscall.Signal{"TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP} {
		if cause != nil && strings.HasPrefix(cause.Error(), sig.String()) {
			return name
		}
	}
	return "INT"
}
