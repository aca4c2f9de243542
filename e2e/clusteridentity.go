package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/harmony-fleet/fleet/internal/credentials"
)

// clusterAudience is that of the tokens with which ServiceAccounts sign in to NATS.
const clusterAudience = "fleet"

// kubernetesFiles is where the kubelet puts what a Pod needs to speak to the cluster.
const kubernetesFiles = "/var/run/secrets/kubernetes.io/serviceaccount"

// clusterIssuer is the cluster's own issuer as one of the callout's, for the components
// that sign in as their ServiceAccount; nil where there is none.
func (s *Stack) clusterIssuer(ctx context.Context) (map[string]any, error) {
	var subjects, roles []any
	for _, c := range s.opts.Components {
		if len(c.Roles) == 0 {
			continue
		}
		subjects = append(subjects, map[string]any{"subject": fmt.Sprintf("system:serviceaccount:%s:%s", s.Namespace, c.Name), "roles": c.Roles})
		for _, r := range c.Roles {
			roles = append(roles, r)
		}
	}
	if len(subjects) == 0 {
		return nil, nil
	}
	raw, err := s.kube.Discovery().RESTClient().Get().AbsPath("/.well-known/openid-configuration").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the cluster for its issuer of ServiceAccount tokens: %w", err)
	}
	var discovery struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(raw, &discovery); err != nil || discovery.Issuer == "" {
		return nil, fmt.Errorf("the cluster does not say which issuer its ServiceAccount tokens have: %v", err)
	}
	// Pods reach the API server by this address, without DNS; the address of the keys in
	// the discovery document is one for clients elsewhere.
	svc, err := s.kube.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask the cluster for its address: %w", err)
	}
	api := net.JoinHostPort(svc.Spec.ClusterIP, strconv.Itoa(int(svc.Spec.Ports[0].Port)))
	return map[string]any{
		"url": discovery.Issuer, "audience": clusterAudience, "jwks_url": "https://" + api + "/openid/v1/jwks",
		"ca_file": kubernetesFiles + "/ca.crt", "token_file": kubernetesFiles + "/token",
		"roles": roles, "subjects": subjects,
	}, nil
}

// signsIn gives a Pod a token of its ServiceAccount for NATS, where agents and operator
// look for one.
func signsIn(spec *corev1.PodSpec) {
	lifetime := int64(3600)
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "identity", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: clusterAudience, ExpirationSeconds: &lifetime, Path: identityFile,
		}}},
	}}})
	c := &spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "identity", MountPath: identityDir, ReadOnly: true})
}

// identityDir and identityFile make credentials.DefaultKubernetesTokenFile.
const (
	identityDir  = "/var/run/secrets/fleet"
	identityFile = "token"
)

// callsCluster gives a Pod the token and the authority with which it speaks to the
// cluster's API.
func callsCluster(spec *corev1.PodSpec) {
	yes := true
	spec.AutomountServiceAccountToken = &yes
}

// login is the [credentials] table of a component with roles.
func (site Site) login() map[string]any {
	if site.User != "" {
		return map[string]any{"type": credentials.TypeShared, "user": site.User, "password": site.Password}
	}
	return map[string]any{"type": credentials.TypeKubernetes}
}
