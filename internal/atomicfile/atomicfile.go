// Package atomicfile replaces files as a whole: a reader, or a power cut, finds
// the old content or the new, never half of it.
//
//	err := atomicfile.Write(path, data)
package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Write puts data in the place of the file path, which need not be there yet;
// its directory must. The file has mode 0600: what is written this way tends to
// hold secrets. The data is on disk before the old file goes. An error names the
// path, and leaves the old file as it was.
func Write(path string, data []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
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
	return os.Rename(tmp.Name(), path)
}
