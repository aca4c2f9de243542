// Package rollout decides how a change of a Deployment reaches its devices: which of
// them get it now, and where the whole stands. It is pure: facts and the time go in,
// and nothing is read, written or started.
//
//	mem := rollout.NewMemory(now)
//	for _, d := range matched {
//		mem.Fill(now, deadline, &facts)   // what only time tells
//		in.Devices = append(in.Devices, facts)
//	}
//	out := rollout.Plan(in)
//	for _, id := range out.Take { … }     // write the current revision there
//	// look again when a device changes, or at out.Next
//
// A device is, of the current revision,
//
//	to be taken  it has another one, or none, or is to be tried anew
//	in flight    it has it, is online, and has neither run it nor failed
//	running      it says that it runs
//	broken       it has run it, and does not now: that is no fault of the rollout
//	failed       it refused it, or could not run it by the deadline
//
// Running, broken and failed devices are through. Of those that are through, the
// share that failed decides whether the rollout stops by itself; only a batch that
// is through, or all of the devices, can stop it. Devices that are offline are
// neither taken nor waited for. What they last said still counts: they do not undo a
// verdict by going away.
package rollout
