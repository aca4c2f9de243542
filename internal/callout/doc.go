// Package callout is the NATS auth callout service: an OIDC token in, a scoped NATS
// user out.
//
// A nats-server that is configured for it asks this service about every client that
// connects. The service verifies the client's token against the issuers it trusts,
// reads the roles, and answers with a user JWT that places the client in one account
// with the permissions of package access, or with a denial:
//
//	nats-server --$SYS.REQ.USER.AUTH--> queue (bounded) --> 64 workers
//	     ^                                                     |  decode, decrypt   request.go
//	     |                                                     |  verify the token  internal/oidcverify
//	     |                                                     |  roles, account    roles.go, decide.go
//	     +------------- signed user JWT or denial -------------+  mint, encrypt     mint.go
//
// Use:
//
//	cfg, err := callout.Load("fleet-callout.toml")
//	svc, err := callout.New(callout.Options{Config: cfg, Logger: logger})
//	err = svc.Run(ctx)    // blocks; ends within a second or so of ctx
//
// The server waits 2 s for an answer, whatever its configuration says, and holds the
// client meanwhile. So a request that has waited longer than MaxAge is dropped unanswered
// (its client is about to try again anyway, and answering it would delay those who still
// wait), and everything else is answered at once, denials included. Several instances may
// run: they share a queue group.
package callout
