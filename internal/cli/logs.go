package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

type logsCommand struct {
	app          *app
	follow       bool
	tail         int
	since, until string
	timestamps   bool
	window       int64
}

func newLogsCommand(a *app) *cobra.Command {
	l := &logsCommand{app: a}
	cmd := &cobra.Command{
		Use:   "logs DEVICE [CONTAINER] [-f]",
		Short: "Show the output of a container",
		Long: `Prints what a container on a device wrote: its stdout to stdout, its stderr to stderr.
CONTAINER is a service's name, or deployment/service where the name alone is not unique; it
may be left out where the device has one container only.
With -f it goes on with new output, also of the container that replaces this one, until
Ctrl-C.`,
		Example: `  fleet logs vm-device-00 web --tail 20
  fleet logs vm-device-00 hello/web -f --since 10m --timestamps`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return errors.New("say a DEVICE and, if it has several, one CONTAINER: fleet logs DEVICE CONTAINER")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return l.run(cmd.Context(), cmd.Flags().Changed("tail"), args[0], strings.Join(args[1:], ""))
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&l.follow, "follow", "f", false, "go on with new output until Ctrl-C")
	f.IntVar(&l.tail, "tail", 0, "only the last `N` lines (default: all)")
	f.StringVar(&l.since, "since", "", "only what is newer: a `time` such as 2026-01-02T15:04:05Z, or a duration before now such as 10m")
	f.StringVar(&l.until, "until", "", "only what is older: a `time`, or a duration before now")
	f.BoolVar(&l.timestamps, "timestamps", false, "begin each line with its time")
	f.Int64Var(&l.window, "window", command.DefaultLogsWindow, "`bytes` under way: more is faster over a long way")
	return cmd
}

func (l *logsCommand) run(ctx context.Context, tailed bool, device, container string) error {
	if err := command.CheckDeviceID(device); err != nil {
		return err
	}
	o := client.LogsOptions{
		Container: container, Follow: l.follow, Reopen: l.follow, Timestamps: l.timestamps, Window: l.window,
		Stdout: l.app.stdout, Stderr: l.app.stderr, Notice: func(text string) { l.app.say(text) },
	}
	if tailed {
		if l.tail < 0 {
			return rejected("--tail is %d; say a number of lines", l.tail)
		}
		o.Tail = &l.tail
	}
	var err error
	if o.Since, err = moment("--since", l.since); err != nil {
		return err
	}
	if o.Until, err = moment("--until", l.until); err != nil {
		return err
	}
	var flush func() error
	if l.app.json() {
		out, errs := &jsonLines{app: l.app, device: device, stream: command.StreamStdout}, &jsonLines{app: l.app, device: device, stream: command.StreamStderr}
		o.Stdout, o.Stderr = out, errs
		flush = func() error { return errors.Join(out.flush(), errs.flush()) }
	}
	c, _, done, err := l.app.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	err = c.Logs(ctx, device, o)
	if l.follow && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // Ctrl-C is how it ends
	}
	if flush != nil {
		err = errors.Join(err, flush())
	}
	return err
}

// moment reads a time, or a duration before now; empty is the zero time.
func moment(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, rejected("%s %q is neither a time such as 2026-01-02T15:04:05Z nor a duration such as 10m", flag, s)
	}
	return t, nil
}

// maxJSONLine is where a line without an end is cut, in bytes.
const maxJSONLine = 1 << 20

// jsonLines prints each line as an object.
type jsonLines struct {
	app    *app
	device string
	stream command.Stream
	rest   []byte
}

func (j *jsonLines) Write(p []byte) (int, error) {
	j.rest = append(j.rest, p...)
	for {
		i := bytes.IndexByte(j.rest, '\n')
		if i < 0 {
			break
		}
		if err := j.print(j.rest[:i]); err != nil {
			return 0, err
		}
		j.rest = j.rest[i+1:]
	}
	if len(j.rest) >= maxJSONLine {
		return len(p), j.flush()
	}
	return len(p), nil
}

func (j *jsonLines) flush() error {
	if len(j.rest) == 0 {
		return nil
	}
	err := j.print(j.rest)
	j.rest = nil
	return err
}

func (j *jsonLines) print(line []byte) error {
	return j.app.writeJSON(struct {
		DeviceID string         `json:"device_id"`
		Stream   command.Stream `json:"stream"`
		Line     string         `json:"line"`
	}{j.device, j.stream, strings.ToValidUTF8(string(line), "\uFFFD")})
}
