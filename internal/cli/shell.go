package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

type shellCommand struct {
	app   *app
	where where
}

func newShellCommand(a *app) *cobra.Command {
	s := &shellCommand{app: a}
	cmd := &cobra.Command{
		Use:   "shell DEVICE [--container NAME] [-- PROGRAM [ARG...]]",
		Short: "Open a terminal in a container, or on a device",
		Long: `Opens a shell, or the program named, in a terminal. Everything that is typed goes to it,
Ctrl-C too. Enter, then ~. leaves; everything that was started in the terminal ends with it.
The exit code is the shell's; 255 means that fleet itself failed, and stderr says how.`,
		Annotations: map[string]string{ownCode: "yes"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("say on which device: fleet shell DEVICE")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.own(s.run(cmd.Context(), args[0], args[1:])) },
	}
	s.where.register(cmd)
	return cmd
}

func (s *shellCommand) run(ctx context.Context, device string, argv []string) error {
	if err := command.CheckDeviceID(device); err != nil {
		return err
	}
	env, err := s.where.check()
	if err != nil {
		return err
	}
	c, _, done, err := s.app.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	t, err := s.app.openTerminal(ctx)
	if err != nil {
		return err
	}
	defer t.restore()
	return t.ended(c.Shell(t.ctx, device, client.ShellOptions{
		Container: s.where.container, Host: s.where.host, Argv: argv, Env: env, Workdir: s.where.workdir, User: s.where.user,
		Term: s.app.getenv("TERM"), Size: *t.size(), Stdin: t.input(), Stdout: s.app.stdout, Resize: t.resizes,
	}))
}
