package test

import (
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/agent"
)

// example is the indented block of docs/kubernetes.md that begins with a line.
func example(t *testing.T, first string) string {
	t.Helper()
	doc, err := os.ReadFile("../../../docs/kubernetes.md")
	must(t, err)
	_, rest, ok := strings.Cut(string(doc), "       "+first+"\n")
	if !ok {
		t.Fatalf("docs/kubernetes.md has no example that begins with %q", first)
	}
	var out strings.Builder
	for line := range strings.Lines(rest) {
		if strings.TrimSpace(line) == "" {
			break
		}
		out.WriteString(strings.TrimPrefix(line, "       "))
	}
	return out.String()
}

func TestExamplesOfTheDocumentation(t *testing.T) {
	if out := mustRender(t, example(t, "# values.yaml")); !strings.Contains(out, "vm-device-00") {
		t.Error("the example's device is not rendered")
	}
	var d v1alpha1.Deployment
	must(t, yaml.UnmarshalStrict([]byte(example(t, "# hello.yaml")), &d))
	if d.Kind != "Deployment" || len(d.Spec.Score.Data.Services) != 1 {
		t.Errorf("%+v", d)
	}
	if _, err := agent.ParseConfig([]byte(example(t, "# agent.toml"))); err != nil {
		t.Error(err)
	}
	doc, err := os.ReadFile("../../../docs/kubernetes.md")
	must(t, err)
	for name := range load(t).Values {
		if !strings.Contains(string(doc), "`"+name) && !strings.Contains(string(doc), name+":") && name != "tolerations" && name != "nodeSelector" {
			t.Errorf("value %s is not explained", name)
		}
	}
}
