//go:build !unix

package filelock

import (
	"context"
	"errors"
)

// Wait fails: the locks that this package knows are those of unix.
func Wait(context.Context, string) (unlock func(), err error) {
	return nil, errors.New("locks between processes need a unix system: use a cluster by its kubeconfig")
}
