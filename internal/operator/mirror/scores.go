package mirror

import (
	"encoding/json"
	"sync"

	"github.com/harmony-fleet/fleet/command"
)

// maxScores is how many different scores are kept to be shared. Beyond it all are
// forgotten, and each device keeps what it has.
const maxScores = 1024

// sharedScores gives equal scores one copy of their data: thousands of devices run
// the same.
type sharedScores struct {
	mu   sync.Mutex
	data map[string]json.RawMessage
}

func (s *sharedScores) share(score command.Score) command.Score {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.data[string(score.Data)]
	if !ok {
		if s.data == nil || len(s.data) >= maxScores {
			s.data = map[string]json.RawMessage{}
		}
		data = append(json.RawMessage(nil), score.Data...)
		s.data[string(data)] = data
	}
	return command.Score{Type: shared(score.Type), Data: data}
}
