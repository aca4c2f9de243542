package bench

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/client"
)

// Job is a program on every agent, as a job: a real one, on the host, with its
// session, journal, audit and stored result. Beside it the same number of
// programs are started with nothing between, as many at a time.
var Job = Measurement{"job", measureJob}

func measureJob(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	agents, err := startHosts(ctx, srv, o.Agents, true, dir+"/agents")
	if err != nil {
		return nil, err
	}
	defer agents.close()
	c, err := newCaller(srv, patient)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := awaitStatuses(ctx, c.Client, o.Agents); err != nil {
		return nil, err
	}
	var ours, bare []time.Duration
	for range max(1, o.Rounds/5) {
		start := time.Now()
		for r := range c.ExecAll(ctx, agents.ids, client.ExecOptions{Host: true, Argv: []string{"true"}}, client.FanOut{}) {
			if !r.OK() {
				return nil, fmt.Errorf("%s: exit code %d: %w", r.Device, r.ExitCode, r.Err)
			}
		}
		ours = append(ours, time.Since(start))
		took, err := barePrograms(ctx, o.Agents, client.DefaultConcurrency)
		if err != nil {
			return nil, err
		}
		bare = append(bare, took)
	}
	return []Result{
		Result{Name: "job", What: fmt.Sprintf("a program (true) on %d agents in one process, %d at a time, median; bare: the programs alone", o.Agents, client.DefaultConcurrency),
			Unit: "ms", Value: millis(quantile(ours, 0.5))}.beside(millis(quantile(bare, 0.5))),
	}, nil
}

// barePrograms starts n programs, so many at a time, and waits for them.
func barePrograms(ctx context.Context, n, window int) (time.Duration, error) {
	start := time.Now()
	slots := make(chan struct{}, window)
	faults := make(chan error, n)
	var wg sync.WaitGroup
	for range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if _, err := exec.CommandContext(ctx, "true").Output(); err != nil {
				faults <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-faults:
		return 0, fmt.Errorf("start true: %w", err)
	default:
		return time.Since(start), nil
	}
}

// awaitStatuses waits until the status of every agent is stored.
func awaitStatuses(ctx context.Context, c *client.Client, n int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		list, err := c.Devices(ctx, nil)
		if err != nil {
			return fmt.Errorf("wait for the statuses: %w", err)
		}
		with := 0
		for _, d := range list {
			if d.Status != nil {
				with++
			}
		}
		if with >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d statuses are stored: %w", with, n, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
