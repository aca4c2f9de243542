package rollout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/kubetest"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

const patience = 20 * time.Second

// terminal runs the command against a real API server, as the operator's user.
type terminal struct {
	t    *testing.T
	c    client.Client
	kube *kubetest.Server
	ns   string
	json bool
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	s := kubetest.Shared(t)
	return &terminal{t: t, c: s.Client(t), kube: s, ns: s.Namespace(t)}
}

func (x *terminal) run(ctx context.Context, out *bytes.Buffer, args ...string) error {
	root := New(Settings{JSON: func() bool { return x.json }, Timeout: func() time.Duration { return 5 * time.Second }})
	root.SetArgs(append(args, "--kubeconfig", x.kube.Kubeconfig(x.t), "-n", x.ns))
	root.SetOut(out)
	root.SilenceErrors, root.SilenceUsage = true, true
	return root.ExecuteContext(ctx)
}

func (x *terminal) says(want string, args ...string) {
	x.t.Helper()
	var out bytes.Buffer
	if err := x.run(x.t.Context(), &out, args...); err != nil || !strings.Contains(out.String(), want) {
		x.t.Errorf("%v: %q, %v; want %q", args, out.String(), err, want)
	}
}

func (x *terminal) fails(outcome command.Outcome, want string, args ...string) {
	x.t.Helper()
	var out bytes.Buffer
	err := x.run(x.t.Context(), &out, args...)
	var e *command.Error
	if !errors.As(err, &e) || e.Outcome != outcome || !strings.Contains(err.Error(), want) {
		x.t.Errorf("%v: %v, want %s: %q", args, err, outcome, want)
	}
}

func (x *terminal) create() *v1alpha1.Deployment {
	x.t.Helper()
	d := &v1alpha1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: x.ns, Name: "web"}}
	d.Spec.Selector.All = true
	d.Spec.Score = v1alpha1.Score{Type: command.ScorePodmanV0, Data: v1alpha1.ScoreData{Services: []v1alpha1.Service{{Name: "main", Image: "i:1"}}}}
	if err := x.c.Create(x.t.Context(), d); err != nil {
		x.t.Fatal(err)
	}
	return d
}

func (x *terminal) get() *v1alpha1.Deployment {
	x.t.Helper()
	d := &v1alpha1.Deployment{}
	if err := x.c.Get(x.t.Context(), client.ObjectKey{Namespace: x.ns, Name: "web"}, d); err != nil {
		x.t.Fatal(err)
	}
	return d
}

// stands writes the status as the operator does.
func (x *terminal) stands(phase v1alpha1.RolloutPhase, message string) {
	x.t.Helper()
	d := x.get()
	d.Status.ObservedGeneration, d.Status.Phase, d.Status.Revision, d.Status.Matched = d.Generation, phase, 2, 3
	d.Status.Conditions = []metav1.Condition{{Type: v1alpha1.DeploymentProgressing, Status: metav1.ConditionTrue, Reason: "X", Message: message, LastTransitionTime: metav1.Now()}}
	if err := x.c.Status().Update(x.t.Context(), d); err != nil {
		x.t.Fatal(err)
	}
}

func TestPauseResumeAndUndo(t *testing.T) {
	x := newTerminal(t)
	x.create()
	x.says("has not taken up the last change", "status", "web")
	x.says("web  paused", "pause", "web")
	x.says("is paused already", "pause", "web")
	if !x.get().Spec.Rollout.Paused {
		t.Error("not paused")
	}
	x.says("web  resumed", "resume", "web")
	if r := x.get().Spec.Rollout; r.Paused || r.ResumedAt != nil {
		t.Errorf("%+v", r)
	}
	x.says("neither paused nor stopped", "resume", "web")
	x.stands(v1alpha1.RolloutStopped, "2 of 3 failed")
	x.says("web  Stopped  revision 2: 2 of 3 failed", "status", "web")
	x.says("web  resumed", "resume", "web")
	if r := x.get().Spec.Rollout; r.ResumedAt == nil || time.Since(r.ResumedAt.Time) > time.Minute {
		t.Errorf("%+v", r)
	}
	x.says("web  is going back", "undo", "web")
	if to := x.get().Spec.RollbackTo; to == nil || *to != 0 {
		t.Errorf("rollbackTo %v", to)
	}
	x.says("web  is going back", "undo", "web", "--to", "7")
	if to := x.get().Spec.RollbackTo; to == nil || *to != 7 {
		t.Errorf("rollbackTo %v", to)
	}
	x.json = true
	x.stands(v1alpha1.RolloutComplete, "3 of 3")
	var out bytes.Buffer
	if err := x.run(t.Context(), &out, "status", "web"); err != nil {
		t.Fatal(err)
	}
	var l line
	if err := json.Unmarshal(out.Bytes(), &l); err != nil || l.Phase != v1alpha1.RolloutComplete || !l.Current || l.Matched != 3 || l.Namespace != x.ns {
		t.Errorf("%s: %v", out.String(), err)
	}
}

func TestFaultsSayWhatToDo(t *testing.T) {
	x := newTerminal(t)
	x.fails(command.OutcomeFailed, "there is no Deployment web in namespace "+x.ns, "status", "web")
	x.fails(command.OutcomeFailed, "there is no Deployment web", "status", "web", "-w")
	x.fails(command.OutcomeRejected, "DEPLOYMENT", "pause", "No_Name")
	x.fails(command.OutcomeRejected, "--to", "undo", "web", "--to", "-1")
	x.fails(command.OutcomeRejected, "context", "pause", "web", "--context", "nowhere")
	bare := kubetest.Start(t)
	none := &terminal{t: t, c: bare.Client(t), kube: bare, ns: "default"}
	none.fails(command.OutcomeFailed, "deploy/crds", "status", "web")
	bare.StopAPI()
	none.fails(command.OutcomeFailed, "refused", "status", "web")
}

func TestWatchGoesOnUntilTheRolloutHasEnded(t *testing.T) {
	x := newTerminal(t)
	x.create()
	for _, c := range []struct {
		phase v1alpha1.RolloutPhase
		fails bool
	}{{v1alpha1.RolloutComplete, false}, {v1alpha1.RolloutStopped, true}} {
		x.stands(v1alpha1.RolloutProgressing, "1 of 3")
		out := &lines{seen: make(chan string, 16)}
		done := make(chan error, 1)
		root := New(Settings{JSON: func() bool { return false }, Timeout: func() time.Duration { return 5 * time.Second }})
		root.SetArgs([]string{"status", "web", "-w", "--kubeconfig", x.kube.Kubeconfig(t), "-n", x.ns})
		root.SetOut(out)
		root.SilenceErrors, root.SilenceUsage = true, true
		go func() { done <- root.ExecuteContext(t.Context()) }()
		for i, want := range []string{"1 of 3", "2 of 3", "the end"} {
			if i == 1 {
				x.stands(v1alpha1.RolloutProgressing, want)
			} else if i == 2 {
				x.stands(c.phase, want)
			}
			select {
			case got := <-out.seen:
				if !strings.Contains(got, want) {
					t.Errorf("said %q, want %q", got, want)
				}
			case <-time.After(patience):
				t.Fatalf("does not say %q", want)
			}
		}
		var err error
		ended := false
		testwait.For(t, patience, "the end of the watch", func() bool {
			select {
			case err = <-done:
				ended = true
			default:
			}
			return ended
		})
		if (err != nil) != c.fails || c.fails && !strings.Contains(err.Error(), "the end") {
			t.Errorf("%s ends with %v", c.phase, err)
		}
	}
}

// lines passes what is written on, line by line.
type lines struct{ seen chan string }

func (l *lines) Write(p []byte) (int, error) {
	l.seen <- string(p)
	return len(p), nil
}
