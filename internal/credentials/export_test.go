package credentials

import "time"

// For the tests in package credentials_test, which need the issuer fixture,
// which imports this package.

// SetNow replaces the clock of a zitadel-key source.
func SetNow(s Source, now func() time.Time) { s.(*zitadelKey).now = now }

const (
	RetryAfter  = retryAfter
	MinTokenAge = minTokenAge
)
