//go:build !linux

package logfile

import (
	"context"
	"errors"
	"os"
	"time"
)

// watch is not there: logs are followed through the engine's API.
type watch struct{}

func watchFile(string) (*watch, error) { return nil, errors.ErrUnsupported }

func (w *watch) rotated() (*os.File, error) { return nil, errors.ErrUnsupported }

func (w *watch) wait(context.Context, time.Duration) (bool, error) {
	return false, errors.ErrUnsupported
}

func (w *watch) first(*os.File) error { return errors.ErrUnsupported }

func (w *watch) close() {}
