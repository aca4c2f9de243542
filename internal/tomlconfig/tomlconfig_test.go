package tomlconfig

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Timeout Duration `toml:"timeout"`
	Count   int      `toml:"count"`
	NATS    struct {
		URL      URLs   `toml:"url"`
		Password string `toml:"password"`
	} `toml:"nats"`
	Log Log `toml:"log"`
}

func TestDecodeReadsEachType(t *testing.T) {
	for _, tc := range []struct {
		text string
		urls []string
	}{
		{`url = "nats://a"`, []string{"nats://a"}},
		{`url = ["nats://a", "tls://b"]`, []string{"nats://a", "tls://b"}},
		{`url = []`, nil},
	} {
		got, err := Decode[sample]([]byte("timeout = '1.5s'\n[log]\nlevel = 'warn'\n[nats]\n" + tc.text))
		if err != nil {
			t.Fatalf("%s: %v", tc.text, err)
		}
		if time.Duration(got.Timeout) != 1500*time.Millisecond || got.Log.Level != "warn" || !slices.Equal(got.NATS.URL, tc.urls) {
			t.Errorf("%s: %+v", tc.text, got)
		}
	}
}

func TestDecodeErrorsSayWhereAndQuoteNothing(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "[nats]\npassword = 'hunter2'\npasswd = 'hunter2'", `line 3: unknown key "nats.passwd"`},
		{"all unknown keys", "a = 'hunter2'\nb = 1", "line 1: unknown key \"a\"\nline 2: unknown key \"b\""},
		{"not TOML", "[nats]\npassword = hunter2", "line 2"},
		{"wrong kind", "count = 'hunter2'", `key "count"`},
		{"duration", "count = 1\ntimeout = 'hunter2'", "line 2, column 11: key \"timeout\" is not a duration"},
		{"URLs", "[nats]\nurl = 7", "want a string or a list of strings"},
	} {
		_, err := Decode[sample]([]byte(tc.text))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s quotes the file: %v", tc.name, err)
		}
	}
}

func TestLogWritesAtItsLevelAndFormat(t *testing.T) {
	var out strings.Builder
	log := Log{Level: "warn", Format: "json"}.New(&out)
	log.Info("too low")
	log.Warn("kept", "n", 1)
	if got := out.String(); strings.Contains(got, "too low") || !strings.HasPrefix(got, "{") || !strings.Contains(got, `"msg":"kept"`) {
		t.Errorf("wrote %q", got)
	}
	out.Reset()
	if log := (Log{}).New(&out); !log.Enabled(t.Context(), slog.LevelInfo) || log.Enabled(t.Context(), slog.LevelDebug) {
		t.Error("the zero value is not level info")
	}
}

func TestLogChecksNameWhatIsThere(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{Log{}.CheckLevel(), ""}, {Log{}.CheckFormat(), ""},
		{Log{Level: "debug"}.CheckLevel(), ""}, {Log{Format: "json"}.CheckFormat(), ""},
		{Log{Level: "loud"}.CheckLevel(), `"loud" is not debug, info, warn or error`},
		{Log{Format: "xml"}.CheckFormat(), `"xml" is not text or json`},
	} {
		if got := ""; tc.err != nil {
			if got = tc.err.Error(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		} else if tc.want != "" {
			t.Errorf("no error, want %q", tc.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("timeout = '1s'\ncount = 1\n[nats]\nurl = ['nats://a']"))
	f.Add([]byte("[nats]\nurl = { a = 1 }"))
	f.Add([]byte("url = '''\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := Decode[sample](raw); err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
	})
}
