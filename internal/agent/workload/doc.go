// Package workload serves the verbs that look into what a device runs: logs,
// exec and shell.
//
//	w := workload.New(workload.Options{DeviceID: id, Engine: engine, Sessions: sessions, Policy: policy, …})
//	reply, err := w.Logs(ctx, call) // opens a session, or says why not
//
// Each handler checks the request, then the policy, then what is there, opens a
// session (package session), and returns; the session goes on by itself. An exec
// without a session waits for the program and carries its output in the reply.
//
// A program is a process of a container, or one of the device itself where the
// policy allows that. Both are ended by a signal to everything in their session,
// on the host: an agent that cannot see the host's processes therefore refuses
// exec and shell.
//
// Arguments, environment, input and output appear in no log and no record.
package workload
