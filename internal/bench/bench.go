// Package bench measures the command plane beside bare NATS in the same run,
// which is what `fleet bench` prints and docs/performance.md publishes. The bare
// figure crosses the same two accounts of the same broker with nothing of this
// project in the way: a plain request, a plain responder, payloads of the same
// size. The ratio is what holds on another machine; the times are not.
//
//	results, err := bench.Run(ctx, bench.Options{Log: log}, bench.Ping, bench.Scatter)
//	bench.WriteTable(os.Stdout, results)
package bench

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// Options are the sizes of the measurements. Zero values are the sizes of the
// published table.
type Options struct {
	Agents int // of the scatter; default 1000
	Pings  int // of the latency measurements, each way; default 20000
	Logins int // through the callout; default 4000
	Rounds int // of the scatter, each way; default 15
	Return int // agents that come back after a restart of the broker; default 10000
	Execs  int // at most 100 for each agent; default 5000
	Growth int // pings after which the broker's memory is looked at; default 200000

	StreamMiB int // of a program's output; default 512

	Log *slog.Logger // nil discards

	connect []nats.Option // of agents that come back, for a test that will not wait for their jitter
}

func (o *Options) setDefaults() {
	def := func(n *int, value int) {
		if *n == 0 {
			*n = value
		}
	}
	def(&o.Agents, 1000)
	def(&o.Pings, 20000)
	def(&o.Logins, 4000)
	def(&o.Rounds, 15)
	def(&o.Return, 10000)
	def(&o.Execs, 5000)
	def(&o.Growth, 200000)
	def(&o.StreamMiB, 512)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Result is one line of the table.
type Result struct {
	Name   string  `json:"name"`
	What   string  `json:"what"`            // what was measured, for people
	Value  float64 `json:"value"`           //
	Unit   string  `json:"unit"`            // us, ms, s, 1/s, MB/s, KiB, MiB or MB
	Bare   float64 `json:"bare,omitempty"`  // the same with bare NATS, in the same unit; 0 where there is no such thing
	Ratio  float64 `json:"ratio,omitempty"` // Value over Bare
	Target string  `json:"target"`          //
	Met    bool    `json:"met"`
}

// Measurement is one thing that can be measured.
type Measurement struct {
	Name string
	run  func(context.Context, Options, string) ([]Result, error)
}

// All lists the measurements in the order of the table.
func All() []Measurement {
	return []Measurement{
		Ping, Scatter, Exec, Job, Stream, Offline, Start, Memory, Growth, Callout, Reconnect,
	}
}

// ByName finds measurements by name.
func ByName(names ...string) ([]Measurement, error) {
	var found []Measurement
	for _, name := range names {
		i := slices.IndexFunc(All(), func(m Measurement) bool { return m.Name == name })
		if i < 0 {
			var known []string
			for _, m := range All() {
				known = append(known, m.Name)
			}
			return nil, fmt.Errorf("unknown measurement %q; there are %v", name, known)
		}
		found = append(found, All()[i])
	}
	return found, nil
}

// Run measures one after the other, each in a directory of its own that is
// removed afterwards.
func Run(ctx context.Context, o Options, which ...Measurement) ([]Result, error) {
	o.setDefaults()
	var results []Result
	for _, m := range which {
		dir, err := os.MkdirTemp("", "fleet-bench-")
		if err != nil {
			return results, err
		}
		o.Log.Info("measuring", "name", m.Name)
		some, err := m.run(ctx, o, dir)
		err2 := os.RemoveAll(dir)
		if err == nil {
			err = err2
		}
		if err != nil {
			return results, fmt.Errorf("measure %s: %w", m.Name, err)
		}
		results = append(results, some...)
	}
	return results, nil
}

// quantile gives the value below which the share q of samples lies. It sorts.
func quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	slices.Sort(samples)
	return samples[int(q*float64(len(samples)-1))]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// beside fills in the bare figure and the ratio, without a target.
func (r Result) beside(bare float64) Result {
	r.Bare, r.Ratio, r.Met = bare, r.Value/bare, true
	return r
}

// against fills in the ratio and whether it is at most most.
func (r Result) against(bare, most float64) Result {
	r = r.beside(bare)
	r.Met = r.Ratio <= most
	r.Target = fmt.Sprintf("<= %.1fx bare", most)
	return r
}
