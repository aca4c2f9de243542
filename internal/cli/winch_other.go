//go:build !unix

package cli

// watchSize does nothing: this system does not tell of changes.
func (t *terminal) watchSize() (stop func()) { return func() {} }
