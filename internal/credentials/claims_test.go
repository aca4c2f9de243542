package credentials

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func jwtOf(payload string) string {
	return "eyJhbGciOiJFUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func TestClaimsAreReadUnverified(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	for _, tc := range []struct {
		name, token string
		want        claims
		ok          bool
	}{
		{"both", jwtOf(`{"iat":100,"exp":200}`), claims{at(100), at(200)}, true},
		{"fraction", jwtOf(`{"exp":200.5}`), claims{Expiry: time.Unix(200, 5e8)}, true},
		{"exponent", jwtOf(`{"exp":2e3}`), claims{Expiry: at(2000)}, true},
		{"zero is not absent", jwtOf(`{"exp":0}`), claims{Expiry: at(0)}, true},
		{"none", jwtOf(`{}`), claims{}, true},
		{"null", jwtOf(`{"exp":null}`), claims{}, true},
		{"unsigned", strings.TrimSuffix(jwtOf(`{"exp":200}`), "c2ln"), claims{Expiry: at(200)}, true},
		{"text", jwtOf(`{"exp":"200"}`), claims{}, false},
		{"negative", jwtOf(`{"exp":-1}`), claims{}, false},
		{"beyond the year 9999", jwtOf(`{"exp":1e18}`), claims{}, false},
		{"beyond float64", jwtOf(`{"exp":1e999}`), claims{}, false},
		{"not an object", jwtOf(`[]`), claims{}, false},
		{"not JSON", jwtOf(`x`), claims{}, false},
		{"not base64", "a.*.c", claims{}, false},
		{"padded base64", "a." + base64.URLEncoding.EncodeToString([]byte(`{"exp":20}`)) + ".c", claims{}, false},
		{"two parts", "a.b", claims{}, false},
		{"four parts", jwtOf(`{}`) + ".d", claims{}, false},
		{"no header", "." + jwtOf(`{}`), claims{}, false},
		{"empty", "", claims{}, false},
		{"huge", jwtOf(`{"x":"` + strings.Repeat("x", maxToken) + `"}`), claims{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := decodeClaims(tc.token)
			if (err == nil) != tc.ok || !got.Expiry.Equal(tc.want.Expiry) || !got.IssuedAt.Equal(tc.want.IssuedAt) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestLifeOfAToken(t *testing.T) {
	c := func(iat, exp int64) claims {
		var c claims
		if iat > 0 {
			c.IssuedAt = time.Unix(iat, 0)
		}
		if exp > 0 {
			c.Expiry = time.Unix(exp, 0)
		}
		return c
	}
	for _, tc := range []struct {
		name      string
		c         claims
		expiresIn time.Duration
		want      time.Duration
	}{
		{"claims alone", c(100, 200), 0, 100 * time.Second},
		{"answer alone", c(0, 0), time.Minute, time.Minute},
		{"the shorter of both", c(100, 200), time.Minute, time.Minute},
		{"the shorter of both, other way", c(100, 130), time.Minute, 30 * time.Second},
		{"no iat", c(0, 200), time.Minute, time.Minute},
		{"neither", c(0, 200), 0, 0},
		{"dead", c(200, 100), time.Minute, 0},
	} {
		if got := lifeOf(tc.c, tc.expiresIn); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func FuzzDecodeClaims(f *testing.F) {
	for _, s := range []string{"", "..", "a.b.c", jwtOf(`{"iat":1,"exp":2}`), jwtOf(`{"exp":253402300799.9}`), jwtOf(`{"exp":1e-300}`)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, tok string) {
		c, err := decodeClaims(tok)
		if err != nil {
			if c != (claims{}) {
				t.Error("claims beside an error")
			}
			return
		}
		for _, at := range []time.Time{c.Expiry, c.IssuedAt} {
			if _, err := json.Marshal(at); err != nil {
				t.Errorf("time out of range: %v", err)
			}
		}
	})
}

func FuzzParseKeyFile(f *testing.F) {
	f.Add([]byte(`{"type":"serviceaccount","keyId":"1","key":"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----","userId":"2"}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"key":"hidden-hidden-hidden"`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseKeyFile(data)
		if err != nil {
			if k != (KeyFile{}) {
				t.Error("key beside an error")
			}
			if strings.Contains(err.Error(), "hidden-hidden-hidden") {
				t.Error("quotes the key")
			}
			return
		}
		if k.Type != KeyFileType || k.KeyID == "" || k.UserID == "" || k.Key == "" {
			t.Errorf("incomplete %v", k)
		}
	})
}

func FuzzTokenUser(f *testing.F) {
	token := func(claims string) string { return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s" }
	f.Add(token(`{"iss":"https://id","sub":"42"}`))
	f.Add(token(`{"iss":"","sub":"42"}`))
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		if user, ok := TokenUser(token); ok && user == "" {
			t.Error("an empty user")
		}
	})
}
