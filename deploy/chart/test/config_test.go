package test

import (
	"slices"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/internal/operator/config"
)

func checkOperator(t *testing.T, content, variant string) {
	t.Helper()
	cfg, err := config.Parse([]byte(content), "/nowhere")
	if err != nil {
		t.Fatalf("%v in\n%s", err, content)
	}
	if !cfg.Provision || !*cfg.Kubernetes.LeaderElection || cfg.Kubernetes.Namespace != "fleet-system" {
		t.Errorf("%+v", cfg)
	}
	if strings.Contains(variant, "replicas: 3") && cfg.Streams.Replicas != 3 {
		t.Errorf("a cluster of 3 servers, and %d copies of each stream", cfg.Streams.Replicas)
	}
	if want := []string{"team-a", "team-b"}; strings.Contains(variant, "team-a") && !slices.Equal(cfg.Kubernetes.Namespaces, want) {
		t.Errorf("namespaces %v", cfg.Kubernetes.Namespaces)
	}
}
