package operator

import (
	"context"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/deployment"
	"github.com/harmony-fleet/fleet/internal/operator/device"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

// leaseName is that of the leader's Lease, in the operator's namespace.
const leaseName = "fleet-operator"

// parts are what controllers are made of.
type parts struct {
	mirror *mirror.Mirror
	owner  device.Owner
}

// manage runs the mirror and the controllers while this replica leads, until ctx ends
// or the lead is lost.
func (op *Operator) manage(ctx context.Context, m *mirror.Mirror, owner device.Owner) error {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	inNamespaces := map[string]cache.Config{}
	for _, ns := range op.cfg.Kubernetes.Namespaces {
		inNamespaces[ns] = cache.Config{}
	}
	yes := true
	mgr, err := manager.New(op.rest, manager.Options{
		Scheme: scheme,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&v1alpha1.Device{}:           {Label: labels.SelectorFromSet(labels.Set{v1alpha1.NamespaceLabel: owner.Name})},
				&v1alpha1.Deployment{}:       {Namespaces: inNamespaces},
				&appsv1.ControllerRevision{}: {Namespaces: inNamespaces},
			},
		},
		// Served by the operator itself, which can tell of what it waits for before.
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",

		LeaderElection: *op.cfg.Kubernetes.LeaderElection, LeaderElectionID: leaseName, LeaderElectionNamespace: owner.Name,
		LeaderElectionReleaseOnCancel: true, // the program ends after

		// Names of controllers are those of metrics, and two operators in one process,
		// as in tests, may share these.
		Controller: ctrlconfig.Controller{SkipNameValidation: &yes},
	})
	if err != nil {
		return fmt.Errorf("make the manager: %w", err)
	}
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { // once it leads
		op.state.lead()
		op.log.Info("leading", "namespace", owner.Name, "deployments_of", op.cfg.Kubernetes.Namespaces)
		return nil
	})); err != nil {
		return err
	}
	if err := mgr.Add(m); err != nil {
		return err
	}
	if err := op.addControllers(mgr, parts{mirror: m, owner: owner}); err != nil {
		return fmt.Errorf("add a controller: %w", err)
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("the controllers ended: %w", err)
	}
	return nil
}

// addControllers adds every controller to the manager.
func (op *Operator) addControllers(mgr manager.Manager, p parts) error {
	devices := device.New(device.Options{
		Client: mgr.GetClient(), Reader: mgr.GetAPIReader(), Mirror: p.mirror, Namespace: p.owner,
		Events: mgr.GetEventRecorderFor("fleet-operator"), Logger: op.log,
	})
	if err := devices.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("device: %w", err)
	}
	deployments, err := deployment.Add(mgr, deployment.Options{
		Mirror: p.mirror, Owns: p.owner.Owns, Namespaces: op.cfg.Kubernetes.Namespaces, Logger: op.log,
	})
	if err != nil {
		return fmt.Errorf("deployment: %w", err)
	}
	return errors.Join(op.state.own().Register(devices), op.state.own().Register(deployments))
}
