package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/internal/bench"
)

type benchCommand struct {
	app     *app
	options bench.Options
}

func newBenchCommand(a *app) *cobra.Command {
	b := &benchCommand{app: a}
	var names []string
	for _, m := range bench.All() {
		names = append(names, m.Name)
	}
	cmd := &cobra.Command{
		Use:   "bench [NAME...]",
		Short: "Measure the command plane beside bare NATS on this machine",
		Long: `Measures the command plane and, in the same run, bare NATS with nothing of this project in
the way, and prints a Markdown table of both. The ratios are what holds on another machine.
Everything runs in this process; no fleet is touched.

Measurements: ` + strings.Join(names, ", ") + ` (default: all).`,
		ValidArgs: names,
		RunE:      func(cmd *cobra.Command, args []string) error { return b.run(cmd.Context(), args) },
	}
	f := cmd.Flags()
	f.IntVar(&b.options.Agents, "agents", 0, "agents of the scatter and of the memory (default 1000)")
	f.IntVar(&b.options.Pings, "pings", 0, "pings of the latency measurements, each way (default 20000)")
	f.IntVar(&b.options.Logins, "logins", 0, "logins through the callout (default 4000)")
	f.IntVar(&b.options.Rounds, "rounds", 0, "rounds of the scatter, each way (default 15)")
	f.IntVar(&b.options.Return, "return", 0, "agents that come back after a restart of the broker (default 10000)")
	f.IntVar(&b.options.Execs, "execs", 0, "execs, at most 100 for each agent (default 5000)")
	f.IntVar(&b.options.Growth, "growth", 0, "pings after which the broker's memory is looked at (default 200000)")
	f.IntVar(&b.options.StreamMiB, "stream", 0, "MiB of output of a program (default 512)")
	return cmd
}

func (b *benchCommand) run(ctx context.Context, names []string) error {
	which := bench.All()
	if len(names) > 0 {
		var err error
		if which, err = bench.ByName(names...); err != nil {
			return rejected("%v", err)
		}
	}
	o := b.options
	if min(o.Agents, o.Pings, o.Logins, o.Rounds, o.Return, o.Execs, o.Growth, o.StreamMiB) < 0 {
		return rejected("the sizes of measurements cannot be negative")
	}
	o.Log = b.app.log
	results, err := bench.Run(ctx, o, which...)
	write := bench.WriteTable
	if b.app.json() {
		write = bench.WriteJSON
	}
	if len(results) > 0 {
		err = errors.Join(err, write(b.app.stdout, results))
	}
	return err
}
