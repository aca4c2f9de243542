package issuer

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/internal/callout"
)

// TestDocumentationIsTrue holds docs/issuer.md against the code: every key is
// named, every default is the one, and the examples are taken.
func TestDocumentationIsTrue(t *testing.T) {
	raw, err := os.ReadFile("../../docs/issuer.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, v := range []any{Config{}, tlsConfig{}, userConfig{}} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			key := typ.Field(i).Tag.Get("toml")
			if !strings.Contains(text, "| `"+key+"`") && !strings.Contains(text, ", `"+key+"`") && !strings.Contains(text, "["+key+"]") && !strings.Contains(text, "** `"+key+"`") {
				t.Errorf("key %s of %s is not explained", key, typ)
			}
		}
	}
	o, err := Options{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{o.Listen, o.ProjectID, o.OrgID, o.OrgDomain, o.Algorithm} {
		if !strings.Contains(text, "`\""+value+"\"`") {
			t.Errorf("default %q is not in the table", value)
		}
	}
	if !strings.Contains(text, "| `token_lifetime` | `\""+strings.TrimSuffix(o.TokenLifetime.String(), "0m0s")+"\"` |") {
		t.Errorf("token_lifetime: the default is %v", o.TokenLifetime)
	}
	_, example, _ := strings.Cut(text, "```toml\n")
	example, _, found := strings.Cut(example, "```")
	cfg, err := parseConfig([]byte(example))
	if !found || err != nil || len(cfg.Users) != 2 {
		t.Errorf("the example: %v, %v", cfg.Users, err)
	}
	_, other, _ := strings.Cut(text, "```\n[[issuers]]")
	other, _, found = strings.Cut(other, "```")
	const rest = "[nats]\npassword = 'x'\n[signing]\nissuer_seed_file = '/x'\n"
	if _, err := callout.Parse([]byte(rest + "[[issuers]]" + other)); !found || err != nil {
		t.Errorf("what it says of the callout: %v", err)
	}
}
