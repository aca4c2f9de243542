// Package chaos holds tests alone: it breaks one part of a running fleet after
// the other and checks what operators were promised. Every part is real: brokers
// in processes of their own, agents, callout, issuer, TLS, sockets, disks.
//
//	go test ./internal/chaos           # a small slice of each scenario
//	make chaos                         # full size; at most 10 minutes
//
// Each scenario is one row of a table (main_linux_test.go) that says what breaks
// and what holds; docs/faults.md carries the same table, and a test keeps the two
// equal. To add one, add a row, run `go test ./internal/chaos -update`, and read
// what changed in the docs.
//
// Network namespaces, file systems of their own and packet filters need Linux and
// root. Scenarios that need them are left out elsewhere, which the test says;
// with CI=true or at full size that is a failure.
package chaos
