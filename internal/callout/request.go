package callout

import (
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/harmony-fleet/fleet/internal/access"
)

const (
	// RequestSubject is where a nats-server asks, in the callout's account.
	RequestSubject = "$SYS.REQ.USER.AUTH"
	// QueueGroup is shared by all instances.
	QueueGroup = "fleet-callout"

	requestAudience  = "nats-authorization-request"
	headerServerXKey = "Nats-Server-Xkey"
)

// authRequest is a decoded request of a server.
type authRequest struct {
	server     string // public key of the server: audience of the answer
	serverXKey string // encrypts the answer; empty: not encrypted
	user       string // public nkey the server made for this client: subject of the answer
	info       jwt.ClientInformation
	opts       jwt.ConnectOptions
}

// ref is a short mark of one login, the same in the server's log and in ours.
func (r *authRequest) ref() string {
	if len(r.user) < 12 {
		return ""
	}
	return r.user[1:12]
}

// credential is the token of the login and the account asked for, if any.
func (r *authRequest) credential() (token, userField string) {
	if r.opts.Token != "" {
		return r.opts.Token, r.opts.Username
	}
	// Clients that know only user and password.
	switch access.Account(r.opts.Username) {
	case access.Ops, access.Data:
		return r.opts.Password, r.opts.Username
	}
	return "", r.opts.Username
}

// decode opens and checks a request. A request that came with enough to be answered is
// returned even beside an error.
func (k keyPairs) decode(msg *nats.Msg) (*authRequest, error) {
	data, serverXKey := msg.Data, msg.Header.Get(headerServerXKey)
	switch {
	case serverXKey != "" && k.xkey == nil:
		return nil, deny(ReasonUnencrypted, "the server encrypts its requests (auth_callout.xkey) but signing.xkey_seed_file is not set")
	case serverXKey != "":
		if !nkeys.IsValidPublicCurveKey(serverXKey) {
			return nil, deny(ReasonBadRequest, "the request's xkey header is no curve key")
		}
		opened, err := k.xkey.open(data, serverXKey)
		if err != nil {
			return nil, deny(ReasonBadRequest, "the request cannot be decrypted; is %s the xkey in the server's auth_callout?", k.public.XKey)
		}
		data = opened
	}
	// Decode verifies the signature, and that a server key made it.
	c, err := jwt.DecodeAuthorizationRequestClaims(string(data))
	if err != nil {
		return nil, deny(ReasonBadRequest, "the request is not an authorization request signed by a server")
	}
	switch {
	case c.Audience != requestAudience:
		return nil, deny(ReasonBadRequest, "the request's audience is not %s", requestAudience)
	case c.Issuer != c.Server.ID || !nkeys.IsValidPublicServerKey(c.Server.ID):
		return nil, deny(ReasonBadRequest, "the request is not signed by the server that it names")
	case !nkeys.IsValidPublicUserKey(c.UserNkey):
		return nil, deny(ReasonBadRequest, "the request has no user key")
	case c.Server.XKey != serverXKey:
		return nil, deny(ReasonBadRequest, "the request's xkey is not the one that it is encrypted with")
	}
	r := &authRequest{server: c.Server.ID, serverXKey: serverXKey, user: c.UserNkey, info: c.ClientInformation, opts: c.ConnectOptions}
	switch {
	case c.Subject != k.public.Issuer:
		return r, deny(ReasonBadRequest, "the server expects issuer %s, this service signs as %s; compare auth_callout.issuer", c.Subject, k.public.Issuer)
	case serverXKey == "" && k.xkey != nil:
		return r, deny(ReasonUnencrypted, "the server does not encrypt its requests; set auth_callout.xkey to %s", k.public.XKey)
	}
	return r, nil
}
