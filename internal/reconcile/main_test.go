package reconcile_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const patience = 60 * time.Second

func TestMain(m *testing.M) {
	code := m.Run()
	err := closePodman()
	if err == nil && code == 0 {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// runner is a reconciler that runs.
type runner struct {
	*reconcile.Reconciler
	t    testing.TB
	stop func() // and wait

	mu      sync.Mutex
	last    reconcile.Report
	reports []reconcile.Report
	log     strings.Builder
}

func (r *runner) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

// start runs a reconciler with every interval shrunk.
func start(t testing.TB, device string, e reconcile.Engine, change ...func(*reconcile.Options)) *runner {
	t.Helper()
	r := &runner{t: t}
	o := reconcile.Options{
		Device: device, Engine: e, Resync: 500 * time.Millisecond, Relist: time.Millisecond,
		RetryMin: 10 * time.Millisecond, RetryMax: 100 * time.Millisecond,
		BackoffMin: 10 * time.Millisecond, BackoffMax: 200 * time.Millisecond, BackoffReset: time.Minute,
		LeftoverAge: 500 * time.Millisecond,
		Logger:      slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Report: func(rep reconcile.Report) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.last = rep
			r.reports = append(r.reports, rep)
		},
	}
	for _, f := range change {
		f(&o)
	}
	r.Reconciler = reconcile.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the reconciler does not stop")
		}
	})
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("log of %s:\n%s\nlast report: %s", device, r.log.String(), asJSON(r.last))
		}
	})
	return r
}

func asJSON(v any) string {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func (r *runner) report() reconcile.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// await waits for a report that satisfies cond.
func (r *runner) await(what string, cond func(reconcile.Report) bool) reconcile.Report {
	r.t.Helper()
	testwait.For(r.t, patience, what, func() bool { return cond(r.report()) })
	return r.report()
}

// phase waits until a deployment of a revision is in a phase.
func (r *runner) phase(revision uint64, deployment string, phase command.Phase) command.DeploymentStatus {
	r.t.Helper()
	rep := r.await(fmt.Sprintf("%s is %s at revision %d", deployment, phase, revision), func(rep reconcile.Report) bool {
		d := rep.Deployments[deployment]
		return d.Phase == phase && d.Revision == revision
	})
	return rep.Deployments[deployment]
}

// gone waits until nothing is left of what is not desired.
func (r *runner) gone(revision uint64, deployment string) {
	r.t.Helper()
	r.await(deployment+" is gone", func(rep reconcile.Report) bool {
		_, there := rep.Deployments[deployment]
		return rep.Revision == revision && !there
	})
}

// desired makes a document of deployments, each a list of services.
func desired(t testing.TB, revision uint64, deployments map[string][]command.Service) reconcile.Desired {
	t.Helper()
	d := reconcile.Desired{Revision: revision, State: command.DesiredState{Schema: 1, Deployments: map[string]command.Score{}}}
	for name, services := range deployments {
		data, err := json.Marshal(command.PodmanV0{Services: services})
		if err != nil {
			t.Fatal(err)
		}
		d.State.Deployments[name] = command.Score{Type: command.ScorePodmanV0, Data: data}
	}
	return d
}

type services = map[string][]command.Service

func service(name, image string, change ...func(*command.Service)) command.Service {
	s := command.Service{Name: name, Image: image}
	for _, f := range change {
		f(&s)
	}
	return s
}

func withPort(p string) func(*command.Service) {
	return func(s *command.Service) { s.Ports = append(s.Ports, p) }
}
func withCommand(c ...string) func(*command.Service) {
	return func(s *command.Service) { s.Command = c }
}
func withRestart(p string) func(*command.Service) { return func(s *command.Service) { s.Restart = p } }
func withPull(p string) func(*command.Service)    { return func(s *command.Service) { s.Pull = p } }

// names are those of containers, without device and hash.
func names(list []engine.Details) []string {
	var all []string
	for _, d := range list {
		all = append(all, d.Labels.Deployment+"/"+d.Labels.Service+" "+string(d.State))
	}
	return all
}
