package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
)

// line is a rollout as -o json prints it.
type line struct {
	Namespace  string                `json:"namespace"`
	Deployment string                `json:"deployment"`
	Phase      v1alpha1.RolloutPhase `json:"phase"`
	Revision   int64                 `json:"revision"`
	// Current says that all this is of the spec as it stands now.
	Current   bool                     `json:"current"`
	Matched   int32                    `json:"matched"`
	Updated   int32                    `json:"updated"`
	Ready     int32                    `json:"ready"`
	Rejected  int32                    `json:"rejected"`
	Failed    int32                    `json:"failed"`
	Offline   int32                    `json:"offline"`
	Conflicts int32                    `json:"conflicts"`
	Paused    int32                    `json:"paused"`
	Message   string                   `json:"message,omitempty"`
	Failures  []v1alpha1.DeviceFailure `json:"failures,omitempty"`
}

func lineOf(d *v1alpha1.Deployment) line {
	s := d.Status
	l := line{
		Namespace: d.Namespace, Deployment: d.Name, Phase: s.Phase, Revision: s.Revision, Current: s.ObservedGeneration == d.Generation,
		Matched: s.Matched, Updated: s.Updated, Ready: s.Ready, Rejected: s.Rejected, Failed: s.Failed,
		Offline: s.Offline, Conflicts: s.Conflicts, Paused: s.Paused, Failures: s.Failures,
	}
	if c := meta.FindStatusCondition(s.Conditions, v1alpha1.DeploymentProgressing); c != nil {
		l.Message = c.Message
	}
	return l
}

// text is the line for people.
func (l line) text() string {
	if !l.Current {
		return l.Deployment + "  the operator has not taken up the last change yet"
	}
	return command.Printable(fmt.Sprintf("%s  %s  revision %d: %s", l.Deployment, l.Phase, l.Revision, l.Message))
}

// ended tells whether the rollout goes no further by itself.
func (l line) ended() bool {
	switch l.Phase {
	case v1alpha1.RolloutComplete, v1alpha1.RolloutStopped, v1alpha1.RolloutInvalid:
		return l.Current
	}
	return false
}

func (r *rollouts) newStatus() *cobra.Command {
	watch := false
	cmd := &cobra.Command{
		Use: "status DEPLOYMENT [-w]", Short: "Say where the rollout stands", Args: oneName,
		Long: `Says where the rollout stands. With -w it goes on to say so whenever that changes, until the
rollout is complete, and fails where it stops by itself or cannot be rolled out at all.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := r.connect(args[0])
			if err != nil {
				return err
			}
			defer k.close()
			if watch {
				return r.follow(cmd.Context(), k, cmd.OutOrStdout())
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), r.Timeout())
			defer cancel()
			d, err := k.get(ctx)
			if err != nil {
				return err
			}
			return r.print(cmd.OutOrStdout(), lineOf(d))
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until the rollout has ended")
	return cmd
}

func (r *rollouts) print(out io.Writer, l line) error {
	if r.JSON() {
		return json.NewEncoder(out).Encode(l)
	}
	_, err := fmt.Fprintln(out, l.text())
	return err
}

// follow prints every change until the rollout has ended.
func (r *rollouts) follow(ctx context.Context, k *kube, out io.Writer) error {
	last := ""
	return k.watch(ctx, r.Timeout(), func(d *v1alpha1.Deployment) (done bool, err error) {
		l := lineOf(d)
		if key := fmt.Sprintf("%+v", l); key != last {
			last = key
			if err := r.print(out, l); err != nil {
				return true, err
			}
		}
		if !l.ended() {
			return false, nil
		}
		if l.Phase != v1alpha1.RolloutComplete {
			return true, failed("the rollout of %s is %s: %s", l.Deployment, l.Phase, command.Printable(l.Message))
		}
		return true, nil
	})
}
