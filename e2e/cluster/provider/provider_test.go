package provider

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// programs makes a PATH of scripts that all end with the given exit code.
func programs(t *testing.T, code string, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nexit "+code+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSelect(t *testing.T) {
	for _, c := range []struct {
		name       string
		options    Options
		path       string // PATH
		kubeconfig string // KUBECONFIG
		want       string // name of the provider
		wrong      string // in the error
	}{
		{name: "named kubeconfig", options: Options{Kind: Kubeconfig}, want: Kubeconfig},
		{name: "named k3d", options: Options{Kind: K3d}, want: K3d},
		{name: "named local", options: Options{Kind: Local}, want: Local},
		{name: "named local wins over KUBECONFIG", options: Options{Kind: Local}, kubeconfig: "/some/config", want: Local},
		{name: "auto: a file that is named comes first", options: Options{Kind: Auto, Kubeconfig: "/some/config"}, path: programs(t, "0", "k3d", "docker"), want: Kubeconfig},
		{name: "auto: KUBECONFIG comes first", kubeconfig: "/some/config", path: programs(t, "0", "k3d", "docker"), want: Kubeconfig},
		{name: "auto: k3d with an engine comes next", path: programs(t, "0", "k3d", "docker"), want: K3d},
		{name: "auto: nothing", path: programs(t, "0"), wrong: "no cluster can be had here"},
		{name: "auto: k3d without an engine", path: programs(t, "1", "k3d", "docker"), wrong: "k3d:        no Docker engine answers: start it"},
		{name: "unknown", options: Options{Kind: "kind"}, wrong: `cluster provider "kind": want one of auto, kubeconfig, k3d, local`},
		{name: "registry with a scheme", options: Options{Registry: "http://registry.example"}, wrong: "without http://"},
		{name: "registry", options: Options{Kind: Local, Registry: "registry.example/team"}, want: Local},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.kubeconfig)
			t.Setenv("XDG_CACHE_HOME", t.TempDir())
			if c.path != "" {
				t.Setenv("PATH", c.path)
			}
			p, err := Select(t.Context(), c.options)
			if c.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Errorf("got %v, want %q in it", err, c.wrong)
				}
				return
			}
			if err != nil || p.Name() != c.want {
				t.Errorf("got %v, %v, want %s", p, err, c.want)
			}
		})
	}
}

func TestNothingPossibleSaysWhatEachNeeds(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("PATH", t.TempDir())
	_, err := Select(t.Context(), Options{})
	if err == nil {
		t.Fatal("something is possible")
	}
	for _, want := range []string{"kubeconfig: name a cluster you have with KUBECONFIG", "k3d:        the program ", "local:      "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "local cluster: ") || errors.Unwrap(err) != nil {
		t.Errorf("it reads badly: %v", err)
	}
}
