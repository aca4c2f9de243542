package test

import "testing"

// checkOperator is completed once the operator's configuration is there.
func checkOperator(t *testing.T, content string) {
	t.Helper()
	if content == "" {
		t.Error("empty")
	}
}
