package brokersetup

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// CompleteSecret is [Complete] for a Secret, which it makes where it is missing. Another
// that writes it at the same time is no harm: whoever comes second reads it again.
func CompleteSecret(ctx context.Context, kube kubernetes.Interface, namespace, name string, o Options) (changed []string, err error) {
	api := kube.CoreV1().Secrets(namespace)
	for range 5 {
		secret, err := api.Get(ctx, name, metav1.GetOptions{})
		absent := apierrors.IsNotFound(err)
		if err != nil && !absent {
			return nil, fmt.Errorf("read Secret %s/%s: %w", namespace, name, err)
		}
		if absent {
			secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app.kubernetes.io/part-of": "harmony-fleet"}}}
		}
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		changed, err = Complete(secret.Data, o)
		if err != nil {
			return nil, fmt.Errorf("complete Secret %s/%s: %w", namespace, name, err)
		}
		switch {
		case len(changed) == 0:
			return nil, nil
		case absent:
			_, err = api.Create(ctx, secret, metav1.CreateOptions{})
		default:
			_, err = api.Update(ctx, secret, metav1.UpdateOptions{})
		}
		switch {
		case err == nil:
			return changed, nil
		case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err):
			return nil, fmt.Errorf("write Secret %s/%s: %w", namespace, name, err)
		}
	}
	return nil, fmt.Errorf("write Secret %s/%s: it was changed by somebody else each time", namespace, name)
}
