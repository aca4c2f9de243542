package callout

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/internal/oidcverify"
)

// TestDocumentationIsTrue holds docs/callout.md against the code.
func TestDocumentationIsTrue(t *testing.T) {
	raw, err := os.ReadFile("../../docs/callout.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	examples := 0
	for _, block := range strings.Split(text, "\n\n") {
		// Consecutive indented paragraphs make one example; each section has one.
		if strings.HasPrefix(block, "    [[issuers]]") {
			start := strings.Index(text, block)
			end := start + len(block)
			for strings.HasPrefix(text[end:], "\n\n    ") {
				next := strings.Index(text[end+2:], "\n\n")
				end += 2 + next
			}
			if _, err := Parse([]byte(text[start:end])); err != nil {
				t.Errorf("example does not parse: %v\n%s", err, text[start:end])
			}
			examples++
		}
	}
	if examples < 2 {
		t.Errorf("%d examples found", examples)
	}
	for _, r := range []Reason{ReasonBadRequest, ReasonUnencrypted, ReasonConnectionKind, ReasonNoToken, ReasonUnknownIssuer, ReasonSubject,
		ReasonNoRoles, ReasonRoleNotGrantable, ReasonAmbiguousRoles, ReasonWrongAccount, ReasonDeviceID, ReasonDevice, ReasonConnectionName, ReasonInternal,
		Reason(oidcverify.ReasonMalformed), Reason(oidcverify.ReasonAlgorithm), Reason(oidcverify.ReasonIssuer), Reason(oidcverify.ReasonExpired),
		Reason(oidcverify.ReasonNotYet), Reason(oidcverify.ReasonAudience), Reason(oidcverify.ReasonSignature),
		Reason(oidcverify.ReasonUnknownKey), Reason(oidcverify.ReasonUnavailable)} {
		if !strings.Contains(text, "| `"+string(r)+"` |") {
			t.Errorf("reason %s is not explained", r)
		}
	}
	for _, v := range []any{Config{}, NATS{}, TLS{}, Signing{}, Issuer{}, Subject{}} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			if key := typ.Field(i).Tag.Get("toml"); !strings.Contains(text, "`"+key+"`") && !strings.Contains(text, key+"]") {
				t.Errorf("key %s of %s is not explained", key, typ)
			}
		}
	}
}
