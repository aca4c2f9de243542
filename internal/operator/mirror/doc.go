// Package mirror holds in memory what the broker knows of every device: its status,
// whether it is online, the labels that operators gave it, and its desired state.
// It is what the operator's controllers work from; they ask the broker for nothing
// and write through it.
//
//	m := mirror.New(nc, mirror.Options{})
//	changes := m.Subscribe()
//	go m.Start(ctx)
//	<-m.Synced()
//	for range changes.Ready() {
//		for _, id := range changes.Take() {
//			d, ok := m.Device(id)
//			…
//			_, err := m.Put(ctx, id, d.Document.Revision, state, owners)
//		}
//	}
//
// The streams STATUS and HEARTBEAT and the buckets desired-state and device-labels
// are each followed by a consumer that starts with the last message of every device
// and goes on with what is new. Where one breaks off, whatever the reason, it goes on
// from the message after the last one; where a stream was made anew meanwhile, from
// its beginning, and what is not in it any more is forgotten.
//
// A device is online while heartbeats arrive: the time at which the broker stored the
// last one counts. While the connection to the broker is away nothing is said anew
// of any device, and after it each device has the time to be heard again.
package mirror
