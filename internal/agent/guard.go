package agent

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/harmony-fleet/fleet/command"
)

const (
	// requestInfoHeader is put on each command by the server, which overwrites what
	// a client wrote there under exactly this name (nats-server 2.15: setHeader).
	requestInfoHeader = "Nats-Request-Info"
	// natsHeaders is what the names of NATS's own headers begin with.
	natsHeaders = "Nats-"
	// importReply is what every reply subject starts with that the server made for
	// a service import. Any other could be a subject that means something here.
	importReply = "_R_."
	clientKind  = "Client"
)

// maxRequestInfo bounds the identity header, in bytes; the server's has about
// 300, and the user name of a person in it is an issuer and a subject.
const maxRequestInfo = 16 << 10

// guard decides who asked. It trusts only what the server says.
type guard struct {
	account string // of people and their tools

	// last is the latest identity that was accepted: the same caller's commands
	// carry the same header.
	last atomic.Pointer[verified]
}

type verified struct {
	info   string
	caller command.AuditCaller
}

// requestInfo is the part of the header that is looked at. "name" is missing on
// purpose: clients choose it.
type requestInfo struct {
	Account string `json:"acc"`
	User    string `json:"user"`
	Kind    string `json:"kind"`
}

// identify gives the verified caller of a message with these headers, or why it
// is refused; the caller is then filled in as far as it was readable, for the
// audit record.
func (g *guard) identify(header map[string][]string) (caller command.AuditCaller, refusal string) {
	info, refusal := requestInfoOf(header)
	if refusal != "" {
		return caller, refusal
	}
	if v := g.last.Load(); v != nil && v.info == info {
		return v.caller, ""
	}
	decoded, err := decodeRequestInfo(info)
	if err != nil {
		return caller, err.Error()
	}
	caller = command.AuditCaller{User: decoded.User, UID: command.UID(decoded.User), Account: decoded.Account}
	switch {
	case decoded.Kind != clientKind:
		return caller, fmt.Sprintf("the sender is of kind %.40q, not %s", decoded.Kind, clientKind)
	case decoded.Account != g.account:
		return caller, fmt.Sprintf("the caller is in account %.80q, not %s", decoded.Account, g.account)
	case decoded.User == "":
		return caller, "the caller has no user name"
	}
	g.last.Store(&verified{info: strings.Clone(info), caller: caller})
	return caller, ""
}

// requestInfoOf gives the one value of the one identity header. The server
// overwrites the exact name only: any other spelling is a client's, and a
// message that carries one was made to deceive. So was one with any other header
// of NATS's own: the broker puts those on what it reads back from a stream.
func requestInfoOf(header map[string][]string) (info, refusal string) {
	found := 0
	for name, values := range header {
		switch {
		case name == requestInfoHeader:
			found = len(values)
			if found > 0 {
				info = values[0]
			}
		case strings.EqualFold(strings.TrimSpace(name), requestInfoHeader):
			return "", "a header imitates " + requestInfoHeader
		case hasPrefixFold(strings.TrimSpace(name), natsHeaders):
			return "", "a header begins with " + natsHeaders
		}
	}
	switch {
	case found == 0:
		return "", "no " + requestInfoHeader + " header: the command did not come through the import of the operators' account"
	case found > 1:
		return "", requestInfoHeader + " is given more than once"
	case len(info) > maxRequestInfo:
		return "", requestInfoHeader + " is too long"
	}
	return info, ""
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

func decodeRequestInfo(info string) (requestInfo, error) {
	var decoded requestInfo
	if err := json.Unmarshal([]byte(info), &decoded); err != nil {
		return requestInfo{}, fmt.Errorf("%s is not readable", requestInfoHeader)
	}
	return decoded, nil
}
