//go:build unix

// Package filelock keeps processes apart by the lock on a file:
//
//	unlock, err := filelock.Wait(ctx, path)
//	if err != nil { … }
//	defer unlock()
//
// The kernel lets go of a lock when the process that holds it ends, however it ends.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process holds a lock.
var ErrLocked = errors.New("locked")

// Open opens and locks the file, which it makes where there is none. The lock
// belongs to the open file: whoever inherits it holds it too, and the kernel lets
// go of it when the last of them has ended.
func Open(path string) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			file.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, ErrLocked
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// Who held the lock before may have removed the file under this name.
		opened, err1 := file.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(opened, named) {
			return file, nil
		}
		file.Close()
	}
}

// Wait waits for the lock of path until ctx is done. The function it returns
// removes the file and lets go.
func Wait(ctx context.Context, path string) (unlock func(), err error) {
	for {
		file, err := Open(path)
		if err == nil {
			return func() {
				_ = os.Remove(path) // an empty file at worst
				file.Close()
			}, nil
		}
		if !errors.Is(err, ErrLocked) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
