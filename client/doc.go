// Package client is the operator's side of the command plane: it asks one
// device, or fifty thousand, to do something and tells exactly what happened.
//
// It works on a connection that is signed in to the operators' account, with
// the inbox prefix of its token (see command.InboxPrefix):
//
//	c, err := client.New(nc, client.Options{})
//	defer c.Close()
//
//	pong, err := c.Ping(ctx, "vm-device-00")
//	switch {
//	case errors.Is(err, client.ErrDeviceOffline):
//		// nobody listens; err says when it was last heard of
//	case err != nil:
//		var e *command.Error
//		errors.As(err, &e) // e.Outcome is one of a closed set
//	}
//
//	for r := range c.PingAll(ctx, devices, client.FanOut{}) {
//		fmt.Println(r.Device, r.Outcome(), r.RTT)
//	}
//
// Each call ends within its timeout. Deadlines travel with the command, in the
// broker's time, and the device enforces them.
//
// What the fleet reported last is read from the broker, not from the devices:
// see [Client.Devices], [Client.Device] and [Client.Audit].
package client
