package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAStateDirectoryThatEverybodyMayWriteToIsRefused(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	d, err := openStateDir(dir) // made
	if err != nil {
		t.Fatal(err)
	}
	d.close()
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err = openStateDir(dir)
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "0777") || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("mode 0777: %v", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if d, err = openStateDir(dir); err != nil {
		t.Fatalf("mode 0755: %v", err)
	}
	d.close()
}
