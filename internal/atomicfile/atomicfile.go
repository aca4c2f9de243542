// Package atomicfile replaces files as a whole: a reader, or a power cut, finds
// the old content or the new, never half of it.
//
//	err := atomicfile.Write(path, data)
package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// Write puts data in the place of the file path, which need not be there yet;
// its directory must. The file has mode 0600: what is written this way tends to
// hold secrets. The data is on disk before the old file goes. An error names the
// path, and leaves the old file as it was. A writer that is killed may leave a file
// beside it; see [Clean].
func Write(path string, data []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), prefix(path)+"*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	SyncDir(filepath.Dir(path))
	return nil
}

// prefix begins the names of the files that become path.
func prefix(path string) string { return "." + filepath.Base(path) + "." }

// Clean removes what writers of path that were killed have left beside it. There
// must be no writer at work.
func Clean(path string) error {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix(path)) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// SyncDir makes renames in a directory last. Not every file system can, and the
// files themselves are not in danger, so it tells no error.
func SyncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}
