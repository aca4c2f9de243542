package e2e

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

const (
	// filesDir is where a Pod finds its files, and stateDir where it may write.
	filesDir = "/etc/fleet"
	stateDir = "/state"

	labelPart = "app.kubernetes.io/name"
	// labelOpen on NATS's Pod lets devices in; see [Stack.openBroker].
	labelOpen = "fleet.harmony.dev/open"
)

// part is a program that runs as a container, most often the only one of its Pod.
type part struct {
	name  string // of the container, of its Secret, and of a Pod of its own
	image string
	args  []string
	files map[string][]byte // by name, below filesDir
	edit  func(*corev1.PodSpec)

	// secret holds the files where it is shared with other parts, under keys that items
	// gives by name. Empty: the part has a Secret of its own.
	secret string
	items  map[string]string
}

// newPod is a Pod with a container for each of the parts. It is of a kind that passes
// the restricted level of Pod Security and OKD's restricted-v2: no user is named, so
// that the cluster may choose one.
func newPod(name string, parts []part, pull corev1.PullPolicy, uid *int64) *corev1.Pod {
	yes, no, none := true, false, int64(0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelPart: name}},
		Spec: corev1.PodSpec{
			ServiceAccountName:            serviceAccount,
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			TerminationGracePeriodSeconds: &none,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   &yes,
				RunAsUser:      uid,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
		},
	}
	for i, p := range parts {
		p.addTo(&pod.Spec, i, pull)
	}
	return pod
}

// addTo adds the part as container number i, with volumes that no other one sees.
func (p part) addTo(pod *corev1.PodSpec, i int, pull corev1.PullPolicy) {
	yes, no := true, false
	source := &corev1.SecretVolumeSource{SecretName: cmp.Or(p.secret, p.name)}
	for _, name := range slices.Sorted(maps.Keys(p.items)) {
		source.Items = append(source.Items, corev1.KeyToPath{Key: p.items[name], Path: name})
	}
	files, state := "files", "state"
	if i > 0 {
		files, state = fmt.Sprintf("files-%d", i), fmt.Sprintf("state-%d", i)
	}
	pod.Containers = append(pod.Containers, corev1.Container{
		Name: p.name, Image: p.image, ImagePullPolicy: pull, Args: p.args,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no,
			ReadOnlyRootFilesystem:   &yes,
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: files, MountPath: filesDir, ReadOnly: true},
			{Name: state, MountPath: stateDir},
		},
	})
	pod.Volumes = append(pod.Volumes,
		corev1.Volume{Name: files, VolumeSource: corev1.VolumeSource{Secret: source}},
		corev1.Volume{Name: state, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	)
	if p.edit != nil {
		p.edit(pod)
	}
}

// serviceAccount is of the stack's own: nothing waits for a controller to make
// "default". It has no rights.
const serviceAccount = "fleet"

// createPart makes the Secret of p, and a Pod for it alone.
func (s *Stack) createPart(ctx context.Context, p part) error {
	if err := s.createSecret(ctx, p.name, p.files); err != nil {
		return err
	}
	return s.startPod(ctx, p.name, p)
}

// startPod makes a Pod of the parts, and has it made again when somebody deletes it.
func (s *Stack) startPod(ctx context.Context, name string, parts ...part) error {
	s.mu.Lock()
	s.parts[name] = parts
	s.mu.Unlock()
	return s.createPod(ctx, name, parts)
}

func (s *Stack) createSecret(ctx context.Context, name string, files map[string][]byte) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: files}
	if _, err := s.kube.CoreV1().Secrets(s.Namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create Secret %s: %w", name, err)
	}
	return nil
}

func (s *Stack) createPod(ctx context.Context, name string, parts []part) error {
	pull := corev1.PullNever // the image is on the node; who has no such image is told at once
	if s.opts.Registry != "" {
		pull = corev1.PullIfNotPresent
	}
	_, err := s.kube.CoreV1().Pods(s.Namespace).Create(ctx, newPod(name, parts, pull, s.opts.hooks.uid), metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create Pod %s: %w", name, err)
	}
	return nil
}

// recreate makes a Pod again that somebody deleted: the stack is the controller of
// its Pods, which has them run half a second earlier than a Deployment would.
func (s *Stack) recreate(name string) {
	s.mu.Lock()
	parts, ok := s.parts[name]
	s.mu.Unlock()
	if !ok || s.ctx.Err() != nil {
		return
	}
	err := s.createPod(s.ctx, name, parts)
	if err != nil && s.ctx.Err() == nil && !apierrors.IsAlreadyExists(err) {
		s.opts.Logger.Warn("a Pod that was deleted was not made again", "pod", name, "error", err)
	}
	if name == partNATS && err == nil {
		s.wg.Go(s.reopenBroker)
	}
}

// service is one name for the Pods with these labels.
type service struct {
	name     string
	selector map[string]string
	ports    []int32
	nodePort bool // reachable from outside of the cluster too
}

func createService(ctx context.Context, kube kubernetes.Interface, namespace string, svc service) (*corev1.Service, error) {
	spec := corev1.ServiceSpec{
		Selector: maps.Clone(svc.selector),
		// Who connects too early tries again; waiting for readiness would cost more.
		PublishNotReadyAddresses: true,
	}
	if svc.nodePort {
		spec.Type = corev1.ServiceTypeNodePort
	}
	for _, port := range slices.Sorted(slices.Values(svc.ports)) {
		spec.Ports = append(spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("tcp-%d", port), Port: port, TargetPort: intstr.FromInt32(port)})
	}
	made, err := kube.CoreV1().Services(namespace).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: svc.name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create Service %s: %w", svc.name, err)
	}
	return made, nil
}
