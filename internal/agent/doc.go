// Package agent is what runs on a device: it dials out to the broker and tries
// for ever, answers commands on device-commands.<id>.>, reports status and
// heartbeats, follows the desired state, and records every command for audit.
//
//	cfg, err := agent.LoadConfig("/etc/fleet-agent.toml")
//	opts, err := cfg.Options(logger)
//	a, err := agent.New(opts)
//	err = a.Run(ctx) // until ctx ends; answers first what was accepted
//
// Options work without a file too: many agents may run in one process, each
// with one goroutine of its own beside those of its connection.
//
// # A command's way
//
// A command arrives on the callback of a [link] (one connection). The server
// (server.go) takes it through the guard (guard.go: who asked, as the broker
// verified it), the request header and protocol, the deadline by broker time,
// the at-most-once table (replay.go), and a free slot (slots.go); each refusal has
// its own error kind. Where the verb changes something, the request is put into
// the journal (package journal, outcome.go). Then the verb's [Handler] runs, its
// panics contained. The audit record is kept in the spool (package spool) before the reply goes out on the
// connection on which the command came; [auditor] publishes it a little later
// and forgets it when the broker has it.
//
// # Everything else
//
// [Agent.Run] is one loop: it dials, renews (link.go) and retires connections,
// publishes status and heartbeats (report.go), and starts short-lived tasks for
// whatever waits for an answer, such as reading the desired state (desired.go).
// Nothing of it blocks the commands.
package agent
