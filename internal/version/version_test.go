package version

import "testing"

func TestTheLinkersVersionWins(t *testing.T) {
	if String() == "" {
		t.Error("no version")
	}
	defer func() { linked = "" }()
	linked = "v1.2.3"
	if got := String(); got != "v1.2.3" {
		t.Errorf("String() = %q", got)
	}
}
