//go:build !linux

package reconcile_test

func closePodman() error { return nil }
