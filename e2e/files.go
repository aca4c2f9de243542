package e2e

import (
	"fmt"
	"os"
	"path/filepath"
)

const (
	filesPrefix = "fleet-" + namespacePrefix
	// ownerFile names the process that a directory belongs to; one without is kept for
	// somebody.
	ownerFile = "owner"
)

// makeDir makes the directory of a stack's files on this machine, and removes those of
// processes that were killed.
func makeDir(namespace string, keep bool) (string, error) {
	sweepDirs()
	dir, err := os.MkdirTemp("", "fleet-"+namespace+"-")
	if err != nil {
		return "", fmt.Errorf("make a temporary directory: %w: set TMPDIR to one that can be written", err)
	}
	if keep {
		return dir, nil
	}
	return dir, os.WriteFile(filepath.Join(dir, ownerFile), []byte(owner()), 0o600)
}

func sweepDirs() {
	owners, _ := filepath.Glob(filepath.Join(os.TempDir(), filesPrefix+"*", ownerFile)) // the pattern is well formed
	for _, file := range owners {
		if text, err := os.ReadFile(file); err == nil && processGone(string(text)) {
			_ = os.RemoveAll(filepath.Dir(file)) // the next one tries again
		}
	}
}
