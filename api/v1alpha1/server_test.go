package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/kubetest"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

// object reads YAML of spec into an object of the kind, as kubectl does.
func object(t *testing.T, kind, namespace, name, spec string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte("spec:\n"+indent(spec)), &u.Object); err != nil {
		t.Fatalf("%v in\n%s", err, spec)
	}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		b.WriteString("  " + line)
	}
	return b.String()
}

const hello = `
selector: {all: true}
score:
  type: PodmanV0
  data:
    services:
    - {name: hello, image: "docker.io/library/busybox:1"}
`

func TestADeploymentHasItsDefaults(t *testing.T) {
	kube := kubetest.Shared(t)
	c := kube.Client(t)
	ns := kube.Namespace(t)
	if err := c.Create(t.Context(), object(t, "Deployment", ns, "hello", hello)); err != nil {
		t.Fatal(err)
	}
	var d v1alpha1.Deployment
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "hello"}, &d); err != nil {
		t.Fatal(err)
	}
	r := d.Spec.Rollout
	if r.BatchSize == nil || r.BatchSize.String() != "25%" || r.MaxUnavailable != nil || r.Paused ||
		r.SuccessThreshold == nil || *r.SuccessThreshold != 100 || r.ProgressDeadlineSeconds == nil || *r.ProgressDeadlineSeconds != 600 ||
		d.Spec.RevisionHistoryLimit == nil || *d.Spec.RevisionHistoryLimit != 10 || d.Spec.Deletion != v1alpha1.WaitForAll || d.Spec.RollbackTo != nil {
		t.Errorf("%+v", d.Spec)
	}
	if d.Generation != 1 {
		t.Errorf("generation %d", d.Generation)
	}
	d.Status.Phase, d.Status.Matched = v1alpha1.RolloutComplete, 3
	if err := c.Status().Update(t.Context(), &d); err != nil {
		t.Fatal(err)
	}
	if d.Generation != 1 {
		t.Errorf("writing the status made generation %d", d.Generation)
	}
}

// A score of a type that this version does not know comes back as it was written, and
// so do fields of the data that it does not know.
func TestAnUnknownScoreIsKeptAsWritten(t *testing.T) {
	kube := kubetest.Shared(t)
	c := kube.Client(t)
	ns := kube.Namespace(t)
	const data = `{"deep":{"list":[1,2.5,"x",{"y":null}],"on":true},"wasm":"https://example.com/a.wasm"}`
	if err := c.Create(t.Context(), object(t, "Deployment", ns, "wasm", "selector: {names: [d1]}\nscore: {type: WasmV1, data: "+data+"}")); err != nil {
		t.Fatal(err)
	}
	var d v1alpha1.Deployment
	key := client.ObjectKey{Namespace: ns, Name: "wasm"}
	for i := range 2 { // read, and written back by a controller, and read
		if err := c.Get(t.Context(), key, &d); err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(d.Spec.Score.Data)
		if err != nil || canonical(t, got) != canonical(t, []byte(data)) {
			t.Fatalf("read %d: %s, %v", i, got, err)
		}
		d.Spec.Rollout.Paused = true
		if err := c.Update(t.Context(), &d); err != nil {
			t.Fatal(err)
		}
	}
}

func canonical(t *testing.T, data []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestTheAPIServerRefusesMistakes(t *testing.T) {
	kube := kubetest.Shared(t)
	c := kube.Client(t)
	ns := kube.Namespace(t)
	deployment := func(name, spec string) client.Object { return object(t, "Deployment", ns, name, spec) }
	device := func(name, spec string) client.Object { return object(t, "Device", "", name, spec) }
	service := func(fields string) string {
		return "selector: {all: true}\nscore: {type: PodmanV0, data: {services: [{name: a, image: b" + fields + "}]}}"
	}
	rollout := func(fields string) string { return hello + "\nrollout: {" + fields + "}" }
	for _, tc := range []struct {
		name   string
		object client.Object
		want   string // in the message; empty: taken
	}{
		{"name with a dot", deployment("a.b", hello), "the name is that of the deployment on each device"},
		{"name that is too long", deployment(strings.Repeat("a", 64), hello), "1 to 63 of a-z"},
		{"no selector", deployment("x", "score: {type: A, data: {}}"), "selector"},
		{"all beside names", deployment("x", strings.Replace(hello, "all: true", "all: true, names: [a]", 1)), "all stands alone"},
		{"names with a wildcard", deployment("x", strings.Replace(hello, "all: true", "names: ['a*']", 1)), "names[0]"},
		{"the same name twice", deployment("x", strings.Replace(hello, "all: true", "names: [a, a]", 1)), "Duplicate value"},
		{"no services", deployment("x", "selector: {all: true}\nscore: {type: PodmanV0, data: {services: []}}"), "data.services: there must be at least one"},
		{"no data.services", deployment("x", "selector: {all: true}\nscore: {type: PodmanV0, data: {}}"), "data.services: there must be at least one"},
		{"type", deployment("x", "selector: {all: true}\nscore: {type: 'Podman V0', data: {}}"), "score.type"},
		{"no image", deployment("x", "selector: {all: true}\nscore: {type: PodmanV0, data: {services: [{name: a}]}}"), "image"},
		{"two services of one name", deployment("x", "selector: {all: true}\nscore: {type: PodmanV0, data: {services: [{name: a, image: b},{name: a, image: c}]}}"), "Duplicate value"},
		{"restart", deployment("x", service(", restart: sometimes")), "restart"},
		{"pull", deployment("x", service(", pull: often")), "pull"},
		{"port", deployment("x", service(", ports: [http]")), "ports[0]"},
		{"volume", deployment("x", service(", volumes: [data]")), "volumes[0]"},
		{"workdir", deployment("x", service(", workdir: here")), "workdir"},
		{"memory", deployment("x", service(", resources: {memory_bytes: 1000}")), "at least 6291456"},
		{"health", deployment("x", service(", health: {command: []}")), "health.command"},
		{"no batch", deployment("x", rollout("batchSize: 0")), "a number from 1, or a share from 1% to 100%"},
		{"batch of a word", deployment("x", rollout("batchSize: some")), "a number from 1, or a share from 1% to 100%"},
		{"share over 100", deployment("x", rollout("maxUnavailable: 101%")), "a share from 1% to 100%"},
		{"threshold", deployment("x", rollout("successThreshold: 101")), "successThreshold"},
		{"deadline", deployment("x", rollout("progressDeadlineSeconds: 0")), "progressDeadlineSeconds"},
		{"history", deployment("x", hello+"\nrevisionHistoryLimit: 0"), "revisionHistoryLimit"},
		{"deletion", deployment("x", hello+"\ndeletion: Never"), "deletion"},
		{"device with a dot", device("a.b", "{}"), "the name is the device id"},
		{"label key", device("x1", "labels: {'a b': c}"), "a key is a Kubernetes label key"},
		{"label value", device("x1", "labels: {a: '-c'}"), "a value has at most 63"},
		{"long label value", device("x1", "labels: {a: "+strings.Repeat("c", 64)+"}"), "Too long"},
		{"too many labels", device("x1", labels(65)), "Too many"},

		{"every field", deployment("full", `
selector:
  matchLabels: {site: lab}
  matchExpressions: [{key: rack, operator: In, values: ["4"]}]
score:
  type: PodmanV0
  data:
    services:
    - name: a
      image: docker.io/library/busybox:1
      command: [sh, -c, "sleep 1"]
      entrypoint: [/bin/x]
      env: {A: b}
      workdir: /srv
      user: "1000:1000"
      ports: ["8080:80", "127.0.0.1:53:53/udp", "[::1]:81:81/tcp"]
      volumes: ["data:/data:ro", "/srv:/srv"]
      restart: on-failure
      pull: never
      resources: {memory_bytes: 6291456, cpus: 0.5}
      health: {command: [ok], interval_s: 1, timeout_s: 2, retries: 3, start_period_s: 4}
      stop_timeout_s: 5
rollout: {batchSize: 1, maxUnavailable: 100%, paused: true, successThreshold: 0, progressDeadlineSeconds: 1, resumedAt: "2026-01-02T15:04:05Z"}
rollbackTo: 0
revisionHistoryLimit: 1
deletion: Online
`), ""},
		{"labels", device("x1", "labels: {site: lab, example.com/rack: '4', empty: ''}\npaused: true"), ""},
		{"64 labels", device("x2", labels(64)), ""},
		{"longest name", deployment(strings.Repeat("a", 63), hello), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := c.Create(t.Context(), tc.object)
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func labels(n int) string {
	var b strings.Builder
	b.WriteString("labels:\n")
	for i := range n {
		fmt.Fprintf(&b, "  l%d: v\n", i)
	}
	return b.String()
}

// A name in a field of a service that does not exist is dropped by the API server,
// which tells kubectl; it never reaches a device as something else.
func TestAMisspeltFieldIsTold(t *testing.T) {
	kube := kubetest.Shared(t)
	ns := kube.Namespace(t)
	d := object(t, "Deployment", ns, "typo", "selector: {all: true}\nscore: {type: PodmanV0, data: {services: [{name: a, image: b, imagee: c}]}}")
	strict := client.WithFieldValidation(kube.Client(t), "Strict")
	if err := strict.Create(t.Context(), d); err == nil || !strings.Contains(err.Error(), "imagee") {
		t.Errorf("got %v", err)
	}
}
