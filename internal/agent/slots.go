package agent

import (
	"sync"

	"github.com/harmony-fleet/fleet/command"
)

// slots bound how many commands run at once, in all and for each caller.
type slots struct {
	most, mostEach int

	mu    sync.Mutex
	taken int
	by    map[string]int // by caller's UID; nil until first use
}

// take takes a slot for a caller, or says why there is none.
func (s *slots) take(uid string) *command.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.taken >= s.most:
		return command.NewError(command.KindBusy, "%d commands are running on this device; try again", s.taken)
	case s.by[uid] >= s.mostEach:
		return command.NewError(command.KindBusy, "%d commands of this caller are running on this device; try again when one has ended", s.by[uid])
	}
	if s.by == nil {
		s.by = make(map[string]int)
	}
	s.taken++
	s.by[uid]++
	return nil
}

// free gives back what take took.
func (s *slots) free(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.by[uid]--; s.by[uid] == 0 {
		delete(s.by, uid)
	}
}
