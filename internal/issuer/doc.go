// Package issuer is a small real OIDC issuer for tests, demos and
// `fleet up`. It speaks as Zitadel does for machine users, on the provider
// package that Zitadel itself is built on. It is a fixture: whoever can reach
// the machine's memory or key files can sign what they like.
//
//	srv, err := issuer.Start(ctx, issuer.Options{
//		Users: []issuer.User{
//			{Name: "admin", Roles: []string{"fleet-admin"}, ClientSecret: "s3cret"},
//			{Name: "device-vm-00", Roles: []string{"device"}},
//		},
//	})
//	if err != nil { … }
//	defer srv.Close()
//	key, err := srv.KeyFile("device-vm-00")   // Zitadel's machine key file, for the JWT profile grant
//	tok, err := srv.Mint("admin", issuer.MintOptions{})   // a token without asking over HTTP
//
// # What its tokens say
//
// sub is the user's numeric id, client_id the user's name. aud holds the
// projects asked for by scope urn:zitadel:iam:org:project:id:<id>:aud; any
// user gets any project's audience, as with Zitadel, so that an audience alone
// proves nothing. With the scope urn:zitadel:iam:org:projects:roles too, there
// is the claim
//
//	"urn:zitadel:iam:org:project:<project>:roles": {"<role>": {"<org id>": "<org domain>"}}
//
// for [Options.ProjectID], if that is among the projects asked for. Without
// any project, aud is the client id.
//
// # Endpoints
//
// /.well-known/openid-configuration, /oauth/v2/keys, /oauth/v2/token (grants
// client_credentials and urn:ietf:params:oauth:grant-type:jwt-bearer),
// /healthz and /ready.
//
// # Faults
//
// [Server.Stop] and [Server.Restart] take it away and bring it back on the
// same address, [Server.SetFaults] makes it slow or broken,
// [Server.RotateKeys] changes the signing key and
// [Server.DropRetiredKeys] forgets the old ones. [MintOptions] makes tokens
// that must be refused.
//
// The provider library writes lines to slog's default logger (two at start,
// one for each request it refuses); programs that do not want them set
// another default.
package issuer
