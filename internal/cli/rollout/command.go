// Package rollout is `fleet rollout`: the rollouts of Deployments in Kubernetes, for
// people. Which cluster is settled as kubectl does it.
//
//	root.AddCommand(rollout.New(rollout.Settings{JSON: func() bool { return output == "json" }}))
//
// Results go to stdout. Errors are returned, not printed; those of Kubernetes are
// [command.Error] with the outcome of the table of docs/cli.md.
package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
)

// Settings are what the program that has the command decides. They are asked after
// flags have been read.
type Settings struct {
	// JSON says whether results are wanted as JSON, one object on a line.
	JSON func() bool
	// Timeout is how long a request to the API server may take.
	Timeout func() time.Duration
}

// rollouts holds the flags.
type rollouts struct {
	Settings
	kubeconfig, context, namespace string
}

// New returns the command with its subcommands.
func New(s Settings) *cobra.Command {
	r := &rollouts{Settings: s}
	root := &cobra.Command{
		Use:   "rollout",
		Short: "Watch, pause, resume and undo the rollout of a Deployment",
		Long: `Shows and steers how a Deployment of the operator reaches its devices. It speaks to Kubernetes:
--kubeconfig, KUBECONFIG and ~/.kube/config count as they do for kubectl.`,
		Args: cobra.NoArgs,
		// Without a command of its own, help; with something else, an error.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := root.PersistentFlags()
	f.StringVar(&r.kubeconfig, "kubeconfig", "", "kubeconfig `file`")
	f.StringVar(&r.context, "context", "", "`name` of the context in it")
	f.StringVarP(&r.namespace, "namespace", "n", "", "namespace of the Deployment (default: that of the context)")
	root.AddCommand(r.newStatus(), r.newPause(), r.newResume(), r.newUndo())
	return root
}

func oneName(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("say one DEPLOYMENT, not %d", len(args))
	}
	return nil
}

func (r *rollouts) newPause() *cobra.Command {
	return &cobra.Command{
		Use: "pause DEPLOYMENT", Short: "Keep the rollout where it is", Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.change(cmd, args[0], func(d *v1alpha1.Deployment) (map[string]any, string, error) {
				if d.Spec.Rollout.Paused {
					return nil, "is paused already", nil
				}
				return map[string]any{"rollout": map[string]any{"paused": true}}, "paused", nil
			})
		},
	}
}

func (r *rollouts) newResume() *cobra.Command {
	return &cobra.Command{
		Use: "resume DEPLOYMENT", Short: "Let a rollout go on that was paused or has stopped", Args: oneName,
		Long: `Lets a rollout go on that was paused, or that has stopped by itself because too many devices
failed: those are tried anew.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.change(cmd, args[0], func(d *v1alpha1.Deployment) (map[string]any, string, error) {
				change := map[string]any{}
				if d.Spec.Rollout.Paused {
					change["paused"] = nil
				}
				if d.Status.Phase == v1alpha1.RolloutStopped {
					change["resumedAt"] = time.Now().UTC().Format(time.RFC3339)
				}
				if len(change) == 0 {
					return nil, "is neither paused nor stopped", nil
				}
				return map[string]any{"rollout": change}, "resumed", nil
			})
		},
	}
}

func (r *rollouts) newUndo() *cobra.Command {
	to := int64(0)
	cmd := &cobra.Command{
		Use: "undo DEPLOYMENT [--to REVISION]", Short: "Go back to an earlier score", Args: oneName,
		Long: `Asks the operator to put the score of an earlier revision back; it becomes the newest revision.
kubectl get controllerrevisions -l fleet.harmony.dev/deployment=DEPLOYMENT lists those there are.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if to < 0 {
				return rejected("--to is a revision from 1, or 0 for the one before the current one")
			}
			return r.change(cmd, args[0], func(*v1alpha1.Deployment) (map[string]any, string, error) {
				return map[string]any{"rollbackTo": to}, "is going back", nil
			})
		},
	}
	cmd.Flags().Int64Var(&to, "to", 0, "`revision` to go back to; 0 is the one before the current one")
	return cmd
}

// change merges what decide says into the spec; nil changes nothing.
func (r *rollouts) change(cmd *cobra.Command, name string, decide func(*v1alpha1.Deployment) (spec map[string]any, done string, err error)) error {
	k, err := r.connect(name)
	if err != nil {
		return err
	}
	defer k.close()
	ctx, cancel := context.WithTimeout(cmd.Context(), r.Timeout())
	defer cancel()
	d, err := k.get(ctx)
	if err != nil {
		return err
	}
	spec, done, err := decide(d)
	if err != nil {
		return err
	}
	if spec != nil {
		// The version is that which was decided on.
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": d.ResourceVersion}, "spec": spec})
		if err != nil {
			return err
		}
		if d, err = k.patch(ctx, types.MergePatchType, patch); err != nil {
			return err
		}
	}
	if r.JSON() {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(lineOf(d))
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", name, done)
	return err
}

func rejected(format string, args ...any) error {
	return &command.Error{Outcome: command.OutcomeRejected, Message: fmt.Sprintf(format, args...)}
}
