package credentials_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const user = "device-vm-00"

// counter is a log handler that counts the tokens an issuer gave.
type counter struct {
	slog.Handler
	issued atomic.Int32
}

func (c *counter) Enabled(context.Context, slog.Level) bool { return true }

func (c *counter) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "token issued" {
		c.issued.Add(1)
	}
	return nil
}

// clock is set by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// world is an issuer and a source that gets tokens from it.
type world struct {
	srv   *issuer.Server
	src   credentials.Source
	cfg   config
	count *counter
	clock *clock
	log   *syncbuf.Buffer
}

func newWorld(t *testing.T, o issuer.Options) *world {
	t.Helper()
	w := &world{count: &counter{}, clock: &clock{t: time.Now()}, log: &syncbuf.Buffer{}}
	o.Users = append(o.Users, issuer.User{Name: user, Roles: []string{"device"}})
	o.Logger = slog.New(w.count)
	var err error
	if w.srv, err = issuer.Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.srv.Close)
	key, err := w.srv.KeyFile(user)
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = config{
		Type: "zitadel-key", Issuer: w.srv.URL(), ProjectID: w.srv.ProjectID(), Account: "ops",
		KeyFile: write(t, t.TempDir()+"/key.json", string(key), 0o600),
		Logger:  slog.New(slog.NewTextHandler(w.log, nil)),
	}
	w.src = source(t, w.cfg)
	credentials.SetNow(w.src, w.clock.now)
	return w
}

func part(t *testing.T, tok string, i int) map[string]any {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(tok, ".")[i])
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestZitadelKeyGetsATokenWithAudienceAndRoles(t *testing.T) {
	for _, alg := range []string{issuer.ES256, issuer.RS256} {
		w := newWorld(t, issuer.Options{Algorithm: alg})
		cred := get(t, w.src)
		claims := part(t, cred.Token, 1)
		if cred.User != "ops" || cred.Password != "" || claims["client_id"] != user || claims["sub"] != w.srv.UserID(user) ||
			fmt.Sprint(claims["aud"]) != "["+w.srv.ProjectID()+"]" || claims[issuer.RolesClaim(w.srv.ProjectID())] == nil {
			t.Errorf("%v: %v", cred, claims)
		}
		if exp := int64(claims["exp"].(float64)); cred.Expiry.Unix() != exp {
			t.Errorf("expiry %v, exp %v", cred.Expiry, exp)
		}
		if head := part(t, cred.Token, 0); head["alg"] != alg {
			t.Errorf("header %v", head)
		}
		if s := fmt.Sprintf("%v %+v %#v", w.src, w.src, w.src); strings.Contains(s, cred.Token) {
			t.Error("the source shows its token")
		}
	}
}

func TestTokenIsReusedInTheFirstHalfOfItsLife(t *testing.T) {
	w := newWorld(t, issuer.Options{TokenLifetime: time.Hour})
	first := get(t, w.src)
	w.clock.add(29 * time.Minute)
	if get(t, w.src).Token != first.Token || w.count.issued.Load() != 1 {
		t.Error("another token in the first half of its life")
	}
	w.clock.add(2 * time.Minute)
	if get(t, w.src).Token == first.Token || w.count.issued.Load() != 2 {
		t.Error("the same token in the second half of its life")
	}
}

func TestManyCallersShareOneRequest(t *testing.T) {
	w := newWorld(t, issuer.Options{})
	w.srv.SetFaults(issuer.Faults{Delay: 50 * time.Millisecond})
	var wg sync.WaitGroup
	var tokens sync.Map
	for range 32 {
		wg.Go(func() {
			cred, err := w.src.Credential(t.Context())
			if err != nil {
				t.Error(err)
			}
			tokens.Store(cred.Token, true)
		})
	}
	wg.Wait()
	n := 0
	tokens.Range(func(any, any) bool { n++; return true })
	if n != 1 || w.count.issued.Load() != 1 {
		t.Errorf("%d tokens, %d requests", n, w.count.issued.Load())
	}
}

func TestCallerThatGivesUpDoesNotFailTheOthers(t *testing.T) {
	w := newWorld(t, issuer.Options{})
	w.srv.SetFaults(issuer.Faults{Delay: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := w.src.Credential(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, credentials.ErrUnavailable) {
			t.Errorf("leader: %v", err)
		}
	})
	// A follower with little time of its own ends by itself.
	short, cancelShort := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelShort()
	if _, err := w.src.Credential(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), w.srv.URL()) {
		t.Errorf("follower: %v", err)
	}
	for range 4 {
		wg.Go(func() {
			if _, err := w.src.Credential(t.Context()); err != nil {
				t.Errorf("follower: %v", err)
			}
		})
	}
	w.srv.SetFaults(issuer.Faults{})
	cancel()
	wg.Wait()
}

func TestIssuerDownAndBack(t *testing.T) {
	w := newWorld(t, issuer.Options{TokenLifetime: time.Hour})
	w.srv.Stop()
	_, err := w.src.Credential(t.Context())
	if !errors.Is(err, credentials.ErrUnavailable) || !strings.Contains(err.Error(), w.srv.URL()) || !strings.Contains(err.Error(), "check that the issuer runs") {
		t.Fatalf("first token with the issuer down: %v", err)
	}
	if err := w.srv.Restart(); err != nil {
		t.Fatal(err)
	}
	first := get(t, w.src)

	w.srv.Stop()
	w.clock.add(50 * time.Minute)
	if got := get(t, w.src); got != first {
		t.Error("a valid token is not given out while the issuer is down")
	}
	if !strings.Contains(w.log.String(), "could not be renewed") || strings.Contains(w.log.String(), first.Token) {
		t.Errorf("log: %s", w.log)
	}
	if err := w.srv.Restart(); err != nil {
		t.Fatal(err)
	}
	if got := get(t, w.src); got != first {
		t.Error("the issuer is asked again at once after a failure")
	}
	w.clock.add(credentials.RetryAfter)
	second := get(t, w.src)
	if second.Token == first.Token {
		t.Error("not renewed after the issuer came back")
	}

	w.srv.Stop()
	w.clock.add(2 * time.Hour)
	if _, err := w.src.Credential(t.Context()); !errors.Is(err, credentials.ErrUnavailable) {
		t.Errorf("an expired token is given out: %v", err)
	}
}

func TestInvalidateGetsAFreshToken(t *testing.T) {
	w := newWorld(t, issuer.Options{})
	first := get(t, w.src)
	if err := w.srv.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	credentials.Invalidate(w.src)
	if get(t, w.src) != first {
		t.Error("a token just issued was dropped: a refusing server would turn each reconnect into a request")
	}
	w.clock.add(credentials.MinTokenAge)
	credentials.Invalidate(w.src)
	second := get(t, w.src)
	if second.Token == first.Token || part(t, second.Token, 0)["kid"] != w.srv.KeyID() {
		t.Error("not a token of the new key")
	}
	// Once invalidated, the old one is not given out for want of another.
	w.clock.add(credentials.MinTokenAge)
	w.srv.Stop()
	credentials.Invalidate(w.src)
	if _, err := w.src.Credential(t.Context()); !errors.Is(err, credentials.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	credentials.Invalidate(credentials.Static(credentials.Credential{})) // nothing happens
}

func TestRefusedKeyIsSaidClearlyAndReplacedWithoutARestart(t *testing.T) {
	w := newWorld(t, issuer.Options{})
	good, err := w.srv.KeyFile(user)
	if err != nil {
		t.Fatal(err)
	}
	other := newWorld(t, issuer.Options{})
	foreign, err := other.srv.KeyFile(user)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		content string
		refused bool
		says    []string
	}{
		"key of another issuer": {string(foreign), true, []string{w.srv.URL(), "invalid_grant", w.cfg.KeyFile, "belongs to this issuer"}},
		"empty":                 {"", false, []string{"[credentials] key_file", "not JSON"}},
		"not a key file":        {`{"type":"hidden"}`, false, []string{"serviceaccount"}},
		"application key":       {`{"type":"application","keyId":"1","key":"hidden"}`, false, []string{"not for an application"}},
		"broken key":            {`{"type":"serviceaccount","keyId":"1","userId":"2","key":"hidden"}`, false, []string{"not a private key"}},
		"no key id":             {`{"type":"serviceaccount","userId":"2","key":"hidden"}`, false, []string{"keyId"}},
		"no user id":            {`{"type":"serviceaccount","keyId":"2","key":"hidden"}`, false, []string{"userId"}},
		"no key":                {`{"type":"serviceaccount","keyId":"2","userId":"2"}`, false, []string{`"key"`}},
		"too large":             {strings.Repeat(" ", 64<<10) + string(good), false, []string{"64 KiB"}},
	} {
		write(t, w.cfg.KeyFile, tc.content, 0o600)
		_, err := w.src.Credential(t.Context())
		if err == nil || errors.Is(err, credentials.ErrRefused) != tc.refused {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, s := range tc.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v does not say %q", name, err, s)
			}
		}
		if strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: quotes the file: %v", name, err)
		}
	}
	write(t, w.cfg.KeyFile, string(good), 0o640)
	get(t, w.src)
	if !strings.Contains(w.log.String(), "can be read by other users") {
		t.Error("no warning of the file's mode")
	}
}

func TestIssuerMustBeReachedByItsOwnName(t *testing.T) {
	w := newWorld(t, issuer.Options{Issuer: "https://id.example.com"})
	w.cfg.Issuer = "http://" + w.srv.Addr()
	_, err := source(t, w.cfg).Credential(t.Context())
	if !errors.Is(err, credentials.ErrRefused) || !strings.Contains(err.Error(), "another name") {
		t.Error(err)
	}
}

func TestSlowIssuerEndsWithTheContext(t *testing.T) {
	w := newWorld(t, issuer.Options{})
	w.srv.SetFaults(issuer.Faults{Delay: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := w.src.Credential(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, credentials.ErrUnavailable) || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// An issuer whose process was replaced has other keys and may sit at another
// token endpoint: the source finds its way without a restart.
func TestReplacedIssuer(t *testing.T) {
	w := newWorld(t, issuer.Options{TokenLifetime: time.Hour})
	firstToken := get(t, w.src)
	key, err := w.srv.KeyFile(user)
	if err != nil {
		t.Fatal(err)
	}
	addr := w.srv.Addr()
	w.srv.Close()
	var next *issuer.Server
	testwait.For(t, 5*time.Second, "the port again", func() bool {
		next, err = issuer.Start(t.Context(), issuer.Options{Listen: addr, Users: []issuer.User{{Name: user, Roles: []string{"device"}, KeyFile: key}}})
		return err == nil
	})
	defer next.Close()
	w.clock.add(50 * time.Minute)
	second := get(t, w.src)
	if second.Token == firstToken.Token || part(t, second.Token, 0)["kid"] != next.KeyID() {
		t.Error("not a token of the new issuer")
	}
}
