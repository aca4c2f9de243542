package operator

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/harmony-fleet/fleet/internal/operator/config"
	"github.com/harmony-fleet/fleet/internal/operator/device"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

// TestDocumentationIsTrue holds docs/operator.md against the code.
func TestDocumentationIsTrue(t *testing.T) {
	raw, err := os.ReadFile("../../docs/operator.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, v := range []any{config.Config{}, config.Streams{}, config.NATS{}, config.Kubernetes{}, config.Listener{}} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			if key := typ.Field(i).Tag.Get("toml"); !strings.Contains(text, "`"+key+"`") && !strings.Contains(text, "`["+key+"]`") {
				t.Errorf("key %s of %s is not explained", key, typ)
			}
		}
	}
	start := strings.Index(text, "    provision = true")
	end := strings.Index(text[start:], "\nElsewhere")
	if _, err := config.Parse([]byte(text[start:start+end]), os.DevNull); err == nil || !strings.Contains(err.Error(), "kubernetes.namespace") {
		t.Errorf("the example lacks more than the Pod's namespace: %v", err)
	}

	descs := make(chan *prometheus.Desc, 100)
	mirror.New(&nats.Conn{}, mirror.Options{}).Describe(descs)
	device.New(device.Options{}).Describe(descs)
	close(descs)
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range descs {
		if metric := name.FindStringSubmatch(d.String())[1]; !strings.Contains(text, "| `"+metric+"`") && !strings.Contains(text, "| `"+metric+"{") {
			t.Errorf("metric %s is not explained", metric)
		}
	}
	for _, event := range []string{device.EventRegistered, device.EventOnline, device.EventOffline, device.EventLabelsInvalid} {
		if !strings.Contains(text, "`"+event+"`") {
			t.Errorf("event %s is not explained", event)
		}
	}
}
