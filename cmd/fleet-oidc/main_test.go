package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "fleet-oidc")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "fleet-oidc")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	code := 1
	if err != nil {
		os.Stderr.Write(out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

func config(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet-oidc.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodes(t *testing.T) {
	_, out, url := serve(t, "")
	for _, tc := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"help", []string{"--help"}, 0, "not for production", ""},
		{"version", []string{"--version"}, 0, "fleet-oidc ", ""},
		{"nothing", nil, 2, "", "--config is needed"},
		{"unknown flag", []string{"--nope"}, 2, "", "Usage:"},
		{"argument", []string{"--config", "x", "y"}, 2, "", `unexpected argument "y"`},
		{"no file", []string{"--config", "/missing.toml"}, 2, "", "/missing.toml"},
		{"unknown key", []string{"--config", config(t, "lisen = 'x'")}, 2, "", `line 1: unknown key "lisen"`},
		{"port in use", []string{"--config", config(t, "listen = '"+strings.TrimPrefix(url, "http://")+"'")}, 1, "", "choose another port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var stdout, stderr bytes.Buffer
			c := exec.CommandContext(ctx, binary, tc.args...)
			c.Stdout, c.Stderr = &stdout, &stderr
			err := c.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if code := c.ProcessState.ExitCode(); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if !strings.Contains(stdout.String(), tc.stdout) || !strings.Contains(stderr.String(), tc.stderr) || strings.Contains(stderr.String(), "goroutine") {
				t.Errorf("stdout %q, stderr %q; log of the other: %s", stdout.String(), stderr.String(), out)
			}
		})
	}
}

var ready = regexp.MustCompile(`msg="issuer ready" issuer=(\S+)`)

// serve runs the binary until the test ends and gives the issuer's URL.
func serve(t *testing.T, text string) (*exec.Cmd, *syncbuf.Buffer, string) {
	t.Helper()
	var out syncbuf.Buffer
	c := exec.Command(binary, "--config", config(t, text))
	c.Stderr = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.ProcessState == nil {
			c.Process.Kill()
			c.Wait()
		}
	})
	testwait.For(t, 20*time.Second, "issuer ready", func() bool { return ready.MatchString(out.String()) })
	return c, &out, ready.FindStringSubmatch(out.String())[1]
}

func TestServesTokensRotatesAndStops(t *testing.T) {
	dir := t.TempDir()
	c, out, url := serve(t, "keys_dir = '"+dir+"/keys'\nproject_id = '77'\n[[users]]\nname = 'device-a'\nroles = ['device']\nclient_secret = 'hidden-secret'\n")
	src, err := credentials.New(credentials.Config{Type: credentials.TypeZitadelKey, Issuer: url, KeyFile: dir + "/keys/device-a.json", ProjectID: "77"})
	if err != nil {
		t.Fatal(err)
	}
	cred, err := src.Credential(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, 10*time.Second, "rotation", func() bool { return strings.Contains(out.String(), "signing key rotated") })
	client := &http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := c.Wait(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("took %v to stop", d)
	}
	log := out.String()
	if !strings.Contains(log, "fixture for tests and demos, not for production") {
		t.Errorf("does not say what it is: %s", log)
	}
	for _, secret := range []string{"hidden-secret", cred.Token, "PRIVATE KEY", "assertion"} {
		if strings.Contains(log, secret) {
			t.Errorf("log holds a secret: %s", log)
		}
	}
}
