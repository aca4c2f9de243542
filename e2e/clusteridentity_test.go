package e2e

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/e2e/internal/kubeapi"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// provisioner signs in as its ServiceAccount and makes what the operator would.
func provisioner(name string, roles ...string) Component {
	var site Site
	return Component{
		Name: name, Program: image.Program{Name: "fleet", Package: "./cmd/fleet"}, Roles: roles,
		Prepare: func(ctx context.Context, config *rest.Config, s Site) error {
			site = s
			kube, done, err := kubeapi.Client(config)
			if err != nil {
				return err
			}
			defer done()
			_, err = kube.CoreV1().ServiceAccounts(s.Namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			return err
		},
		Edit: func(spec *corev1.PodSpec) {
			spec.Containers[0].Args = []string{"provision", "--server", site.NATSURL, "--ca", filesDir + "/ca.pem", "--token-file", credentials.DefaultKubernetesTokenFile, "--timeout", "60s"}
			// It tries once for each start, and NATS may not be there yet.
			spec.RestartPolicy = corev1.RestartPolicyOnFailure
		},
	}
}

// TestAServiceAccountSignsIn: the callout takes tokens of the cluster's own issuer, from
// the ServiceAccounts that have roles, with those roles alone.
func TestAServiceAccountSignsIn(t *testing.T) {
	s := New(t, Options{Components: []Component{
		provisioner("controller", string(access.RoleController)), provisioner("viewer", string(access.RoleViewer)),
	}})
	for name, want := range map[string]command.Outcome{"controller": command.OutcomeOK, "viewer": command.OutcomeDenied} {
		testwait.For(t, patience, name+" to end as "+string(want), func() bool {
			pod, err := s.kube.CoreV1().Pods(s.Namespace).Get(t.Context(), name, metav1.GetOptions{})
			if err != nil || len(pod.Status.ContainerStatuses) == 0 {
				return false
			}
			status := pod.Status.ContainerStatuses[0]
			for _, ended := range []*corev1.ContainerStateTerminated{status.State.Terminated, status.LastTerminationState.Terminated} {
				if ended != nil && int(ended.ExitCode) == want.ExitCode() {
					return true
				}
			}
			return false
		})
	}
}
