// Package test tries the Helm chart: that it is well formed, that what it renders is
// accepted by Kubernetes and read by the programs, and that a rendered chart, installed
// in a real cluster, is a fleet that works.
package test

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/callout"
)

const chartDir = "../harmony-fleet"

var update = flag.Bool("update", false, "write testdata/*.yaml")

// variants are values that change what is rendered, by name.
var variants = map[string]string{
	"default": ``,
	"userpass": `
auth: userpass
`,
	"large": `
nats:
  replicas: 3
  hosts: [nats.example, 192.0.2.1]
  storage: {className: fast, size: 50Gi}
  service: {type: LoadBalancer, annotations: {example.com/pool: edge}}
operator: {namespaces: [team-a, team-b]}
callout:
  issuers:
    - {url: "https://zitadel.example", audience: "277", project_id: "277", roles: [fleet-viewer, fleet-admin, device], devices: "vm-*"}
  kubernetesIssuer:
    devices: "pod-*"
    subjects:
      - {subject: "system:serviceaccount:edge:agent-a", roles: [device], device_id: pod-a}
      - {subject: "system:serviceaccount:edge:ci", roles: [fleet-admin]}
networkPolicy:
  clients: [{ipBlock: {cidr: 10.0.0.0/8}}]
  monitoring: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
serviceMonitor: {enabled: true, labels: {release: prometheus}}
images: {pullSecrets: [{name: registry}]}
podSecurityContext: {fsGroup: 1000}
tolerations: [{key: fleet, operator: Exists}]
nodeSelector: {kubernetes.io/os: linux}
`,
	"external": `
nats: {enabled: false, url: "tls://nats.example:4222"}
secrets: {existing: fleet-broker}
podDisruptionBudgets: false
networkPolicy: {enabled: false}
`,
	"without-operator": `
operator: {enabled: false}
callout:
  issuers:
    - {url: "https://zitadel.example", audience: "277", project_id: "277", roles: [fleet-admin, device], devices: "vm-*"}
`,
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func values(t *testing.T, text string) map[string]any {
	t.Helper()
	v := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// render gives what an installation would make, hooks included.
func render(t *testing.T, text string, apis ...string) (string, error) {
	t.Helper()
	install := action.NewInstall(&action.Configuration{Log: func(string, ...any) {}})
	install.ReleaseName, install.Namespace = "fleet", "fleet-system"
	install.DryRun, install.ClientOnly, install.Replace = true, true, true
	install.KubeVersion = &chartutil.KubeVersion{Version: "v1.34.4", Major: "1", Minor: "34"}
	install.APIVersions = apis
	release, err := install.Run(load(t), values(t, text))
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, h := range release.Hooks {
		out.WriteString("---\n" + h.Manifest + "\n")
	}
	return out.String() + release.Manifest, nil
}

func mustRender(t *testing.T, text string, apis ...string) string {
	t.Helper()
	out, err := render(t, text, apis...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLint(t *testing.T) {
	for name, text := range variants {
		t.Run(name, func(t *testing.T) {
			lint := action.NewLint()
			lint.Namespace, lint.Strict = "fleet-system", true
			result := lint.Run([]string{chartDir}, values(t, text))
			for _, m := range result.Messages {
				if m.Severity >= support.WarningSev {
					t.Errorf("%s", m)
				}
			}
			if len(result.Errors) > 0 {
				t.Error(result.Errors)
			}
		})
	}
}

// What is rendered is pinned: a change of it shows up in a file.
func TestRenderedManifestsArePinned(t *testing.T) {
	for name, text := range variants {
		t.Run(name, func(t *testing.T) {
			got := mustRender(t, text)
			path := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != got {
				t.Errorf("%s differs; run go test -update in this directory and read the change", path)
			}
		})
	}
}

// objects decodes manifests strictly: an unknown or repeated field is an error.
func objects(t *testing.T, manifests string) (list []runtime.Object) {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	reader := utilyaml.NewYAMLReader(bufioReader(manifests))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(bytes.TrimSpace(withoutComments(doc))) == 0 {
			continue
		}
		obj, _, err := decoder.Decode(doc, nil, nil)
		if runtime.IsNotRegisteredError(err) && bytes.Contains(doc, []byte("monitoring.coreos.com/v1")) {
			u := &unstructured.Unstructured{}
			if err = yaml.UnmarshalStrict(doc, &u.Object); err == nil {
				obj = u
			}
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		list = append(list, obj)
	}
}

func podSpec(obj runtime.Object) (meta metav1.ObjectMeta, spec corev1.PodSpec, ok bool) {
	switch o := obj.(type) {
	case *appsv1.Deployment:
		return o.Spec.Template.ObjectMeta, o.Spec.Template.Spec, true
	case *appsv1.StatefulSet:
		return o.Spec.Template.ObjectMeta, o.Spec.Template.Spec, true
	case *batchv1.Job:
		return o.Spec.Template.ObjectMeta, o.Spec.Template.Spec, true
	}
	return meta, spec, false
}

func TestEveryObjectIsReadAndEveryPodIsRestricted(t *testing.T) {
	checks, err := policy.NewEvaluator(policy.DefaultChecks())
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for name, text := range variants {
		t.Run(name, func(t *testing.T) {
			pods := 0
			for _, obj := range objects(t, mustRender(t, text)) {
				meta, spec, ok := podSpec(obj)
				if !ok {
					continue
				}
				pods++
				for _, result := range checks.EvaluatePod(restricted, &meta, &spec) {
					if !result.Allowed {
						t.Errorf("%s: %s", spec.ServiceAccountName, result.ForbiddenReason+": "+result.ForbiddenDetail)
					}
				}
				if spec.SecurityContext.RunAsUser != nil {
					t.Errorf("%s: runs as a fixed user", spec.ServiceAccountName)
				}
				for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
					if c.SecurityContext == nil || c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem || len(c.Resources.Requests) == 0 {
						t.Errorf("%s of %s: root file system or requests", c.Name, spec.ServiceAccountName)
					}
					if image := c.Image; !strings.Contains(image, ":") {
						t.Errorf("image %s has no tag", image)
					}
				}
				for _, v := range spec.Volumes {
					if v.Secret == nil {
						continue
					}
					for _, item := range v.Secret.Items {
						if item.Key == "ca.key" {
							t.Errorf("%s sees the authority's key", spec.ServiceAccountName)
						}
					}
					if len(v.Secret.Items) == 0 {
						t.Errorf("%s sees the whole Secret", spec.ServiceAccountName)
					}
				}
			}
			if pods == 0 {
				t.Error("no Pods")
			}
		})
	}
}

func TestOnOpenShiftThePlatformChoosesTheGroup(t *testing.T) {
	for _, obj := range objects(t, mustRender(t, "", "security.openshift.io/v1")) {
		if _, spec, ok := podSpec(obj); ok && spec.SecurityContext.FSGroup != nil {
			t.Errorf("%s has group %d", spec.ServiceAccountName, *spec.SecurityContext.FSGroup)
		}
	}
}

// The configurations are read by the programs' own code.
func TestConfigurationsAreValid(t *testing.T) {
	for name, text := range variants {
		t.Run(name, func(t *testing.T) {
			found := 0
			for _, obj := range objects(t, mustRender(t, text)) {
				cm, ok := obj.(*corev1.ConfigMap)
				if !ok {
					continue
				}
				for file, content := range cm.Data {
					found++
					switch file {
					case "fleet-callout.toml":
						checkCallout(t, content, text)
					case "fleet-operator.toml":
						checkOperator(t, content, text)
					default:
						t.Errorf("unknown file %s", file)
					}
				}
			}
			if found == 0 {
				t.Error("no configuration")
			}
		})
	}
}

func checkCallout(t *testing.T, content, variant string) {
	t.Helper()
	cfg, err := callout.Parse([]byte(content))
	if err != nil {
		t.Fatalf("%v in\n%s", err, content)
	}
	own := cfg.Issuers[len(cfg.Issuers)-1]
	if strings.Contains(variant, "operator: {enabled: false}") {
		if len(cfg.Issuers) != 1 {
			t.Errorf("%d issuers", len(cfg.Issuers))
		}
		return
	}
	if own.Audience != "fleet" || own.Subjects[0].Subject != "system:serviceaccount:fleet-system:fleet-operator" || !slices.Equal(own.Subjects[0].Roles, []access.Role{access.RoleController}) {
		t.Errorf("the cluster's issuer: %+v", own)
	}
	if !strings.Contains(variant, "subjects") && !slices.Equal(own.Roles, []access.Role{access.RoleController}) {
		t.Errorf("the cluster's issuer may grant %v", own.Roles)
	}
}

func TestCRDsAreThose(t *testing.T) {
	var names []string
	for _, crd := range load(t).CRDObjects() {
		var def apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(crd.File.Data, &def); err != nil {
			t.Fatal(err)
		}
		names = append(names, def.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"deployments.fleet.harmony.dev", "devices.fleet.harmony.dev"}) {
		t.Errorf("%v", names)
	}
}

func TestBadValuesAreRefusedByName(t *testing.T) {
	for text, want := range map[string]string{
		"auth: none":                              "auth",
		"nats: {replicas: 2}":                     "replicas",
		"nats: {enabled: false}":                  "nats.url",
		"nats: {url: \"nats://user:secret@h:1\"}": "url",
		"nat: {}":                                 "nat",
		"callout: {kubernetesIssuer: {url: \"http://x\"}}":   "url",
		"callout: {kubernetesIssuer: {subjects: [{}]}}":      "subject",
		"callout: {issuers: [{url: \"https://x.example\"}]}": "audience",
		"images: {pullPolicy: Sometimes}":                    "pullPolicy",
	} {
		if out, err := render(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v (%d bytes), want %q", text, err, len(out), want)
		}
	}
}
