package workload

import (
	"crypto/sha256"
	"encoding/base32"

	"github.com/harmony-fleet/fleet/command"
)

// markName is a variable in the environment of every program that the agent
// starts, and so of all that the program starts in turn, unless it takes it away.
// It tells whose they are when neither their parent nor their session does any
// more, also to a later run of the agent.
const markName = "HARMONY_FLEET_EXEC"

// markOf is the value of the variable. It gives none of its parts away, and is
// different for every request of every caller, so that none can reach what
// another's request started.
func markOf(device string, verb command.Verb, uid, requestID string) string {
	sum := sha256.Sum256([]byte(device + "\x00" + string(verb) + "\x00" + uid + "\x00" + requestID))
	return lowerBase32.EncodeToString(sum[:16])
}

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Started is a request whose program an earlier run of the agent started, and
// may have left behind.
type Started struct {
	Verb           command.Verb
	UID, RequestID string
}
