package rollout

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/version"
)

const resource = "deployments"

// watchAgain is the pause before a watch that broke off is begun anew.
const watchAgain = 500 * time.Millisecond

// kube is one Deployment in a cluster.
type kube struct {
	rest            *rest.RESTClient
	http            *http.Client
	codec           runtime.ParameterCodec
	namespace, name string
}

// connect settles which cluster and namespace are meant. It asks nothing yet.
func (r *rollouts) connect(name string) (*kube, error) {
	if err := command.CheckDeploymentName(name); err != nil {
		return nil, rejected("DEPLOYMENT: %v", err)
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = r.kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{
		CurrentContext: r.context, Context: clientcmdapi.Context{Namespace: r.namespace},
	})
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, rejected("kubeconfig: %v", err)
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, rejected("kubeconfig: %v; give --kubeconfig, or set KUBECONFIG", err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config.APIPath, config.GroupVersion = "/apis", &v1alpha1.GroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = "fleet/" + version.String()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, rejected("kubeconfig: %v", err)
	}
	k := &kube{http: client, codec: runtime.NewParameterCodec(scheme), namespace: namespace, name: name}
	if k.rest, err = rest.RESTClientForConfigAndClient(config, client); err != nil {
		return nil, rejected("kubeconfig: %v", err)
	}
	return k, nil
}

func (k *kube) close() { k.http.CloseIdleConnections() }

func (k *kube) get(ctx context.Context) (*v1alpha1.Deployment, error) {
	d := &v1alpha1.Deployment{}
	return d, k.fault(k.rest.Get().Namespace(k.namespace).Resource(resource).Name(k.name).Do(ctx).Into(d))
}

func (k *kube) patch(ctx context.Context, kind types.PatchType, patch []byte) (*v1alpha1.Deployment, error) {
	d := &v1alpha1.Deployment{}
	return d, k.fault(k.rest.Patch(kind).Namespace(k.namespace).Resource(resource).Name(k.name).Body(patch).Do(ctx).Into(d))
}

// watch gives every state of the Deployment to see until that is done. A watch that
// breaks off is begun anew; an API server that does not answer within timeout ends it.
func (k *kube) watch(ctx context.Context, timeout time.Duration, see func(*v1alpha1.Deployment) (done bool, err error)) error {
	for {
		one, cancel := context.WithTimeout(ctx, timeout)
		d, err := k.get(one)
		cancel()
		if err != nil {
			return err
		}
		if done, err := see(d); done || err != nil {
			return err
		}
		if done, err := k.watchFrom(ctx, d.ResourceVersion, see); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchAgain):
		}
	}
}

// watchFrom sees what follows a version, until the watch breaks off.
func (k *kube) watchFrom(ctx context.Context, version string, see func(*v1alpha1.Deployment) (done bool, err error)) (done bool, err error) {
	options := metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", k.name).String(), ResourceVersion: version, Watch: true,
	}
	w, err := k.rest.Get().Namespace(k.namespace).Resource(resource).VersionedParams(&options, k.codec).Watch(ctx)
	if err != nil {
		return false, nil //nolint:nilerr // the next get says what is wrong, or that nothing is any more
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		d, ok := event.Object.(*v1alpha1.Deployment)
		switch {
		case event.Type == watch.Deleted:
			return true, failed("the Deployment %s was deleted", k.name)
		case !ok:
			return false, nil // an error of the watch
		}
		if done, err := see(d); done || err != nil {
			return true, err
		}
	}
	return false, nil
}

// fault says what Kubernetes said, with what to do about it.
func (k *kube) fault(err error) error {
	of := fmt.Sprintf("Deployment %s in namespace %s", k.name, k.namespace)
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err) && apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse): // of the resource, not of the object
		return failed("the cluster has no Deployments of the fleet; kubectl apply --server-side -f deploy/crds installs the definitions")
	case apierrors.IsNotFound(err):
		return failed("there is no %s; see kubectl get deployments.fleet.harmony.dev -A", of)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return &command.Error{Outcome: command.OutcomeDenied, Message: of, Err: err}
	case apierrors.IsConflict(err):
		return failed("%s was changed meanwhile; try again", of)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return &command.Error{Outcome: command.OutcomeRejected, Message: of, Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &command.Error{Outcome: command.OutcomeTimeout, Message: of + ": the API server does not answer in time; see --timeout", Err: err}
	}
	return &command.Error{Outcome: command.OutcomeFailed, Message: of, Err: err}
}

func failed(format string, args ...any) error {
	return &command.Error{Outcome: command.OutcomeFailed, Message: fmt.Sprintf(format, args...)}
}
