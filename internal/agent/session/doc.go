// Package session is the device's end of streams: it brings the output of a
// source (a container's log, a process) to one caller and the caller's input to
// the source, over messages that may be lost when a connection breaks.
//
//	m := session.New(session.Options{Device: "vm-device-00", Conn: current})
//	defer m.Close()
//
//	s, err := m.Open(session.Open{UID: caller.UID, RequestID: id, Session: request.Session})
//	if err != nil { … } // an error reply: too many, id in use
//	s.Serve(func(ctx context.Context) session.Result {
//		_, err := io.Copy(s.Stream(command.StreamStdout), source) // waits for the reader
//		return session.Result{…}
//	}, func(e session.Ended) { audit(e) })
//	return command.SessionReply{Session: request.Session.ID}, nil
//
// What the caller says comes in by [Manager.Control], from the connection's
// callback, and never waits. Each session has two goroutines: its source's, which
// waits in [Session.Write] for credit, and its pump's, which alone sends, so that
// chunks keep their order also when they are sent again.
//
// Memory: a session holds what was sent and not acknowledged, at most its credit
// (bounded by MaxWindow), and at most command.InputWindow of standard input.
package session
