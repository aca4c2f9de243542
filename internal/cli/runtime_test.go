package cli

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestRuntimeSocketIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		flag  string
		env   map[string]string
		there string
		want  string
		fault bool
	}{
		"off":                  {flag: "off", there: "/run/podman/podman.sock"},
		"path":                 {flag: "/x/y.sock", want: "unix:///x/y.sock"},
		"address":              {flag: "unix:///x/y.sock", want: "unix:///x/y.sock"},
		"tcp":                  {flag: "tcp://h:2375", want: "tcp://h:2375"},
		"nonsense":             {flag: "yes", fault: true},
		"relative":             {flag: "unix://x.sock", fault: true},
		"auto, docker first":   {flag: "auto", env: map[string]string{"DOCKER_HOST": "unix:///d", "CONTAINER_HOST": "unix:///c"}, want: "unix:///d"},
		"auto, then container": {flag: "auto", env: map[string]string{"CONTAINER_HOST": "unix:///c"}, want: "unix:///c"},
		"auto, unusable":       {flag: "auto", env: map[string]string{"DOCKER_HOST": "ssh://h"}, there: "/var/run/docker.sock", want: "unix:///var/run/docker.sock"},
		"auto, user's podman":  {flag: "auto", env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/1"}, there: "/run/user/1/podman/podman.sock", want: "unix:///run/user/1/podman/podman.sock"},
		"auto, none":           {flag: "auto"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := runtimeSocket(c.flag, func(v string) string { return c.env[v] },
				func(path string) bool { return path == c.there }, slog.New(slog.DiscardHandler))
			if got != c.want || (err != nil) != c.fault {
				t.Errorf("got %q, %v", got, err)
			}
			if err != nil && exitCode(err) != 2 {
				t.Errorf("exit code %d", exitCode(err))
			}
		})
	}
}

func TestSocketThatNobodyServesIsNotThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if !socketThere(path) {
		t.Error("a socket that listens is not found")
	}
	_ = l.Close()
	if socketThere(path) {
		t.Error("a socket file that was left behind is taken for an engine")
	}
	plain := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if socketThere(plain) {
		t.Error("a plain file is taken for an engine")
	}
}
