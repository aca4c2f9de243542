// Package command is the wire contract between a caller and a device: the
// subjects, headers, payloads, error kinds, outcomes and stored documents of
// the Harmony Fleet command plane. It is a leaf: it imports neither NATS nor
// anything else of this module, so that any program can speak the protocol
// with any NATS library.
//
// A command is one NATS request on [Subject], for example
//
//	device-commands.vm-device-00.ping
//
// with the headers of [RequestHeader] and a JSON object as payload. It gets
// exactly one reply: the verb's reply object, or an error reply, which carries
// the header [HeaderError] and the object of [ErrorReply]. A caller maps what
// it got (or did not get) to one [Outcome] of a closed set:
//
//	subject := command.Subject("vm-device-00", command.VerbPing)
//	header := command.RequestHeader{RequestID: command.NewRequestID(), Deadline: deadline}
//	header.Write(msg.Header)
//	// ... send, receive reply ...
//	ping, err := command.DecodeReply[command.PingReply](reply.Header, reply.Data)
//	var cmdErr *command.Error
//	if errors.As(err, &cmdErr) {
//		os.Exit(cmdErr.Outcome.ExitCode())
//	}
//
// What a device stores and reports ([Status], [Heartbeat], [AuditRecord]) and
// what it is told to run ([DesiredState]) are JSON documents of at most
// [MaxDocument] bytes that carry "schema":1.
//
// # Protocol changelog
//
// The protocol number travels in [HeaderProtocol]; see [CheckProtocol] for who
// serves whom.
//
//	1  2026-11-25  additive: X-Harmony-Owners on a stored desired state.
//	1  2026-11-25  additive: numbers on "resize" and "signal", so that a copy is known as one; without
//	               a number each is a new one, as before. "resend" is honoured four times a second at
//	               most, and a session whose source has ended is given up when nothing is acknowledged
//	               for 30 s.
//	1  2026-11-25  additive: header X-Harmony-Job on exec requests, and the record of a job's result on
//	               fleet.job.<device>.<slot>; such a request is remembered for JobLifetime.
//	1  2026-11-24  additive: services have entrypoint, workdir, user, pull, health and stop_timeout_s;
//	               their status has health, progress and next_try; conditions Ready and StateNotKept.
//	1  2026-11-23  ping, logs, exec, shell, result; sessions; status, heartbeat and audit documents.
//	1  2026-11-24  before any agent served sessions: progress messages, flow control of standard
//	               input, numbers on "in" and "eof", resend; logs reopen; exec tty and timeout_ms.
package command

// Protocol is the protocol number that this package speaks.
const Protocol = 1

// MaxDocument is the largest request, reply or stored document, in bytes.
const MaxDocument = 512 << 10

// Schema is the number that every stored document carries in "schema".
const Schema = 1
