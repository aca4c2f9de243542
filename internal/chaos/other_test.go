//go:build !linux

package chaos

import (
	"os"
	"testing"
)

func TestScenarios(t *testing.T) {
	if os.Getenv("CI") == "true" || os.Getenv("FLEET_CHAOS") == "full" {
		t.Fatal("the fault suite needs Linux")
	}
	t.Skip("the fault suite needs Linux")
}
