package cli

import (
	"maps"
	"strings"
	"testing"
)

func TestLabelArguments(t *testing.T) {
	changes, err := parseLabelChanges([]string{"site=lab", "example.com/rack=", "old-"})
	if err != nil || len(changes) != 3 || *changes[0].value != "lab" || *changes[1].value != "" || changes[2].value != nil || changes[2].name != "old" {
		t.Fatalf("got %+v, %v", changes, err)
	}
	for _, bad := range []string{"site", "=x", "-", "a b=c", "a=b c", "a=b=c", strings.Repeat("a", 64) + "=x", "a=" + strings.Repeat("a", 64), "-a=b", "a/=b", "/a=b"} {
		if _, err := parseLabelChanges([]string{bad}); err == nil || exitCode(err) != 2 {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := parseLabelChanges([]string{"a=b", "a-"}); err == nil {
		t.Error("one label set and taken away at once")
	}
}

func TestSelector(t *testing.T) {
	got, err := parseSelector([]string{"a=b,c=d", "e="})
	if want := map[string]string{"a": "b", "c": "d", "e": ""}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "a", "a=b,", "a=b,a=c", "a=*"} {
		if _, err := parseSelector([]string{bad}); err == nil || exitCode(err) != 2 {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
