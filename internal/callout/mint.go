package callout

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/harmony-fleet/fleet/internal/access"
)

const (
	// maxJitter and a tenth of the lifetime bound what is taken off a session, so that
	// clients who came together (after a server's restart) do not all have to come again
	// at once.
	maxJitter = 10 * time.Minute
	// minSession is the shortest session worth granting.
	minSession = time.Second
)

// expiry is when a session that starts now ends. frac, in [0,1), is the jitter.
func expiry(now, token time.Time, maxSession time.Duration, frac float64) (time.Time, error) {
	end := token
	if limit := now.Add(maxSession); end.After(limit) {
		end = limit
	}
	life := end.Sub(now)
	end = end.Add(-time.Duration(frac * float64(min(life/10, maxJitter)))).Truncate(time.Second)
	if end.Sub(now) < minSession {
		return time.Time{}, deny(reasonExpired, "the token is within %v of its expiry", minSession)
	}
	return end, nil
}

// mintUser makes the user JWT of a decision.
func (k keyPairs) mintUser(userKey string, d decision, account string, expires time.Time) (string, error) {
	c := jwt.NewUserClaims(userKey)
	c.Audience = account // in configuration mode the audience places the user
	c.Name = d.Name
	c.Expires = expires.Unix()
	c.Pub.Allow.Add(d.Perms.Publish...)
	c.Sub.Allow.Add(d.Perms.Subscribe...)
	// An empty allow list would mean that everything is allowed.
	if len(c.Pub.Allow) == 0 {
		c.Pub.Deny.Add(">")
	}
	if len(c.Sub.Allow) == 0 {
		c.Sub.Deny.Add(">")
	}
	if d.Perms.Responses > 0 {
		c.Resp = &jwt.ResponsePermission{MaxMsgs: d.Perms.Responses, Expires: access.ReplyLifetime}
	}
	// A leaf node or MQTT session would carry other people's traffic under this name.
	c.AllowedConnectionTypes.Add(jwt.ConnectionTypeStandard, jwt.ConnectionTypeWebsocket, jwt.ConnectionTypeInProcess)
	return c.EncodeWithSigner(k.issuerPublic, k.sign)
}

// answer signs, and encrypts where the request was, a response: either a user JWT or the
// text of a denial.
func (k keyPairs) answer(r *authRequest, userJWT, denial string) ([]byte, error) {
	c := jwt.NewAuthorizationResponseClaims(r.user)
	c.Audience = r.server
	c.Jwt, c.Error = userJWT, denial
	token, err := c.EncodeWithSigner(k.issuerPublic, k.sign)
	if err != nil {
		return nil, fmt.Errorf("signing the answer: %w", err)
	}
	if r.serverXKey == "" || k.xkey == nil {
		return []byte(token), nil
	}
	sealed, err := k.xkey.seal([]byte(token), r.serverXKey)
	if err != nil {
		return nil, fmt.Errorf("encrypting the answer: %w", err)
	}
	return sealed, nil
}

func jitter() float64 { return rand.Float64() }
