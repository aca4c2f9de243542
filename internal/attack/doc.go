// Package attack holds tests alone: it attacks the broker, set up as package
// broker does it, with the permissions of package access, over plain NATS, as a
// hostile device, as a person without the role, and as both together. Each
// attack is one row of a table that says who tries what and what holds;
// docs/security.md carries the same table, and a test keeps the two equal.
//
//	go test ./internal/attack
//
// Each attack runs against one server and against a cluster of two, there from
// both servers, because a message that crosses a route is treated differently.
// To add one, add a row to devices_test.go or people_test.go, run
// `go test ./internal/attack -update`, and read what changed in the docs.
package attack
