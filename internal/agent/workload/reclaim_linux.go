package workload

// Reclaim ends what is left of programs that an earlier run of the agent started
// and whose end it did not see, and tells how many processes there were.
func (s *Server) Reclaim(started []Started) (processes int) {
	if len(started) == 0 {
		return 0
	}
	parent, noCgroups := ownCgroup()
	ended := map[int]bool{}
	marks := make([]string, len(started))
	for i, r := range started {
		marks[i] = markOf(s.o.DeviceID, r.Verb, r.UID, r.RequestID)
		if noCgroups != nil {
			continue
		}
		g := &cgroup{dir: cgroupOf(parent, marks[i])}
		for _, pid := range g.pids() {
			ended[pid] = true
		}
		g.kill() // fails where there is none
		g.close()
	}
	f := newFamily(marks...)
	f.kill()
	for p := range f.killed {
		ended[p.pid] = true
	}
	return len(ended)
}
