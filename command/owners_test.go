package command

import (
	"maps"
	"os"
	"strings"
	"testing"
)

func TestOwnersAreAsInTheGoldenFile(t *testing.T) {
	const golden = "testdata/golden/owners_header.txt"
	owners := map[string]string{"web": "shop/web", "a-1": "kube-system/a-1"}
	got := EncodeOwners(owners) + "\n"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || got != string(want) {
		t.Errorf("got %q, want %q (%v)", got, want, err)
	}
	read, err := DecodeOwners(strings.TrimSpace(got))
	if err != nil || !maps.Equal(read, owners) {
		t.Errorf("read %v, %v", read, err)
	}
}

func TestDecodeOwnersRefuses(t *testing.T) {
	for name, value := range map[string]string{
		"no JSON":        `web=shop/web`,
		"no object":      `["shop/web"]`,
		"no text":        `{"web":1}`,
		"twice":          `{"web":"a/web","web":"b/web"}`,
		"bad name":       `{"We b":"shop/web"}`,
		"no namespace":   `{"web":"web"}`,
		"three parts":    `{"web":"a/b/c"}`,
		"bad namespace":  `{"web":"A/web"}`,
		"more than fits": `{"web":"` + strings.Repeat("a", maxOwners) + `"}`,
	} {
		if owners, err := DecodeOwners(value); err == nil {
			t.Errorf("%s: read %v", name, owners)
		} else if !strings.Contains(err.Error(), HeaderOwners) || len(err.Error()) > 300 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if owners, err := DecodeOwners(""); owners != nil || err != nil {
		t.Errorf("absent: %v, %v", owners, err)
	}
}

// What is read is written the same way again.
func FuzzDecodeOwners(f *testing.F) {
	for _, s := range []string{"", "{}", `{"web":"shop/web"}`, `{"web":1}`, "null", "{"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		owners, err := DecodeOwners(value)
		if err != nil || value == "" {
			return
		}
		again, err := DecodeOwners(EncodeOwners(owners))
		if err != nil || !maps.Equal(owners, again) {
			t.Fatalf("%v, read again %v, %v", owners, again, err)
		}
	})
}
