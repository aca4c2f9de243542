// Package credentials gets what a program needs to log in to NATS: a user and
// password, or a token, from wherever the configuration says.
//
// A [Source] is asked each time a connection is made, and again when a token
// nears its end, so that rotated files and renewed tokens are picked up
// without a restart. There are four kinds, chosen by [Config.Type]:
//
//   - shared: one user and password for many devices
//   - token-file: a token that something else keeps fresh in a file
//   - kubernetes: the same, from a projected ServiceAccount token
//   - zitadel-key: a Zitadel machine key, exchanged at the issuer for a token
//     (JWT profile grant), kept and reused in the first half of its life
//
// Use:
//
//	src, err := credentials.New(credentials.Config{
//		Type: credentials.TypeZitadelKey, Issuer: "https://id.example.com",
//		KeyFile: "/etc/fleet/key.json", ProjectID: "123456789012345678", Logger: log,
//	})
//	if err != nil { … }          // names the key of the configuration that is wrong
//	cred, err := src.Credential(ctx)
//	… cred.Token, cred.Expiry …
//
// No secret leaves this package in a log line or an error: [Credential],
// [Config] and [KeyFile] redact themselves, and what an issuer answers is
// never quoted beyond the error description of the OAuth standard.
package credentials
