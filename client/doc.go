// Package client is the operator's side of the fleet: it sends commands to
// devices and tells, for each, exactly how it ended.
//
// A [Client] works on a NATS connection in the operators' account, whose inbox
// prefix (nats.CustomInboxPrefix) is the one that the user may subscribe to:
//
//	c, err := client.New(nc, client.Options{Logger: log})
//	if err != nil { … }
//	defer func() { _ = c.Close() }()
//
//	reply, err := c.Ping(ctx, "vm-device-00")
//	switch {
//	case errors.Is(err, client.ErrDeviceOffline): // nobody listens there; said at once
//	case errors.Is(err, client.ErrTimeout):       // somebody listens and did not answer
//	case err != nil: …
//	}
//	fmt.Println(reply.AgentVersion)
//
//	for r := range c.PingAll(ctx, devices, client.FanOut{}) { // as they come, one result per device
//		fmt.Println(r.Device, r.Outcome(), r.RTT)
//	}
//
//	err = c.Logs(ctx, "vm-device-00", client.LogsOptions{Container: "web", Follow: true, Stdout: os.Stdout})
//	r, err := c.Exec(ctx, "vm-device-00", client.ExecOptions{Container: "web", Argv: []string{"ls"}, Stdout: os.Stdout})
//	fmt.Println(r.ExitCode)
//
//	for r := range c.ExecAll(ctx, devices, client.ExecOptions{Container: "web", Argv: []string{"ls"}}, client.FanOut{}) {
//		fmt.Println(r.Device, r.Outcome(), r.ExitCode)
//	}
//
// [Client.Logs], [Client.Exec] and [Client.Shell] are sessions: flow control
// reaches from the writer here to the container there, so that a slow writer slows
// the source and nothing is dropped, and they outlive a connection that breaks for
// less than command.SessionLease. What cannot be had whole is an error.
//
// Every error of a command is a [*command.Error] with one outcome of a closed
// set; the Err variables of this package match them with errors.Is. A command
// never hangs: it ends with its reply, at its timeout, when its context does, or
// when the connection is lost, drained or closed.
//
// Deadlines travel with commands in broker time, which the client asks for once
// and keeps. [Client.Devices] and [Client.Audit] read what devices reported from
// the broker's streams, without asking the devices.
package client
