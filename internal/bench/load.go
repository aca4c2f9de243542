package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/broker"
)

// simulatedExec stands for the program of an exec: 1 KiB of output at once. All
// else of an exec is real: identity, deadline, the request id on disk before it
// starts, audit.
type simulatedExec struct{}

func (simulatedExec) Handle(_ context.Context, r *agent.Request) (any, error) {
	if _, err := command.DecodeRequest[command.ExecRequest](r.Verb, r.Payload); err != nil {
		return nil, err
	}
	return command.ExecReply{Stdout: make([]byte, execOutput)}, nil
}

const (
	execOutput  = 1024 // bytes
	execCallers = 32   // at once
	// execEach is less than the request ids of one caller that an agent remembers.
	execEach = 100
)

// Exec is how many short execs end per second, over many agents, beside plain
// requests whose replies have the same size.
var Exec = Measurement{"exec", measureExec}

func measureExec(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	n := max(1, min(o.Agents, o.Execs/execEach))
	agents, err := startAgents(ctx, srv, n, true, dir+"/agents")
	if err != nil {
		return nil, err
	}
	defer agents.close()
	reply := make([]byte, execOutput*4/3+64) // base64 and the object around it
	bare, err := bareResponder(srv, bareDevice, reply, nats.InProcessServer(srv))
	if err != nil {
		return nil, err
	}
	defer bare.Close()
	c, err := newCaller(srv, patient)
	if err != nil {
		return nil, err
	}
	defer c.close()
	total := min(o.Execs, n*execEach)
	ours, err := atOnce(ctx, total, func(i int) error {
		_, err := c.Output(ctx, agents.ids[i%n], client.ExecOptions{Host: true, Argv: []string{"true"}})
		return err
	})
	if err != nil {
		return nil, err
	}
	plain, err := atOnce(ctx, total, func(int) error {
		_, err := c.nc.Request(command.Subject(bareDevice, command.VerbExec), []byte(`{"host":true,"argv":["true"]}`), 30*time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	return []Result{Result{
		Name: "exec", What: fmt.Sprintf("execs per second, %d agents, %d callers at once, each on disk before it starts (bare: nothing is)", n, execCallers),
		Unit: "1/s", Value: ours,
	}.beside(plain)}, nil
}

const bareDevice = "bare"

// atOnce does n things, execCallers at once, and gives the rate per second.
func atOnce(ctx context.Context, n int, do func(i int) error) (float64, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	var failure atomic.Pointer[error]
	start := time.Now()
	for range execCallers {
		wg.Go(func() {
			for ctx.Err() == nil && failure.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := do(i); err != nil {
					failure.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if err := failure.Load(); err != nil {
		return 0, *err
	}
	return float64(n) / time.Since(start).Seconds(), ctx.Err()
}

// Stream is the rate at which the output of a real program on a device, as much
// as a log, reaches its one reader, beside bare messages of the same size on the
// same way.
var Stream = Measurement{"stream", measureStream}

func measureStream(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	agents, err := startHosts(ctx, srv, 1, false, dir+"/agents")
	if err != nil {
		return nil, err
	}
	defer agents.close()
	c, err := newCaller(srv, patient)
	if err != nil {
		return nil, err
	}
	defer c.close()
	bytes := int64(o.StreamMiB) << 20
	start := time.Now()
	r, err := c.Exec(ctx, agents.ids[0], client.ExecOptions{Host: true, Argv: []string{"head", "-c", fmt.Sprint(bytes), "/dev/zero"}, Window: command.DefaultLogsWindow})
	if err != nil {
		return nil, err
	}
	ours := megabytes(bytes, time.Since(start))
	if r.Bytes.Stdout != bytes {
		return nil, fmt.Errorf("%d bytes of output, want %d", r.Bytes.Stdout, bytes)
	}
	plain, err := bareStream(srv, c.nc, bytes)
	if err != nil {
		return nil, err
	}
	result := Result{Name: "stream", What: fmt.Sprintf("output of a program, %d MiB to one reader", o.StreamMiB), Unit: "MB/s", Value: ours}.beside(plain)
	result.Target, result.Met = ">= 200 MB/s", ours >= 200
	return []Result{result}, nil
}

func megabytes(bytes int64, took time.Duration) float64 { return float64(bytes) / 1e6 / took.Seconds() }

// bareStream publishes as a device to a session's subject without flow control.
func bareStream(srv *broker.Server, nc *nats.Conn, bytes int64) (float64, error) {
	device, err := dial(srv, broker.UserDevice, passwords.Device, command.DeviceInboxPrefix(bareDevice))
	if err != nil {
		return 0, err
	}
	defer device.Close()
	subject := command.SessionSubject(bareDevice, command.UID(broker.UserOps), command.NewSessionID())
	done := make(chan struct{})
	var got int64
	sub, err := nc.Subscribe(subject, func(m *nats.Msg) {
		if got += int64(len(m.Data)); got == bytes {
			close(done)
		}
	})
	if err != nil {
		return 0, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return 0, err
	}
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		return 0, err
	}
	chunk := make([]byte, command.MaxChunk)
	start := time.Now()
	for left := bytes; left > 0; left -= int64(len(chunk)) {
		chunk = chunk[:min(int64(len(chunk)), left)]
		if err := device.Publish(subject, chunk); err != nil {
			return 0, err
		}
	}
	select {
	case <-done:
	case <-time.After(time.Minute):
		return 0, fmt.Errorf("the bare stream lost some of its %d bytes", bytes)
	}
	return megabytes(bytes, time.Since(start)), nil
}
