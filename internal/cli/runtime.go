package cli

import (
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// runtimeSocket finds the container engine for --runtime: the address of its
// API, or "" for none. auto takes DOCKER_HOST, then CONTAINER_HOST, then the
// first of the usual sockets that is there; where there is none the agents run
// no containers. A named socket is taken as it is: its engine may come later.
func runtimeSocket(flag string, getenv func(string) string, there func(path string) bool, log *slog.Logger) (string, error) {
	switch flag {
	case "off", "":
		return "", nil
	case "auto":
	default:
		return engineAddress("--runtime", flag)
	}
	for _, variable := range []string{"DOCKER_HOST", "CONTAINER_HOST"} {
		if value := getenv(variable); value != "" {
			address, err := engineAddress(variable, value)
			if err == nil {
				return address, nil
			}
			log.Warn("looking elsewhere for a container engine", "variable", variable, "error", messageOf(err))
		}
	}
	var usual []string
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		usual = append(usual, filepath.Join(dir, "podman", "podman.sock"), filepath.Join(dir, "docker.sock"))
	}
	usual = append(usual, "/run/podman/podman.sock", "/var/run/docker.sock")
	for _, path := range usual {
		if there(path) {
			return "unix://" + path, nil
		}
	}
	return "", nil
}

// engineAddress takes a path or an address.
func engineAddress(from, value string) (string, error) {
	if filepath.IsAbs(value) {
		return "unix://" + value, nil
	}
	u, err := url.Parse(value)
	if err == nil {
		switch {
		case u.Scheme == "unix" && filepath.IsAbs(u.Path), (u.Scheme == "tcp" || u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
			return value, nil
		}
	}
	return "", rejected("%s %q is not the address of a container engine: auto, off, or a socket such as unix:///run/podman/podman.sock", from, value)
}

// socketThere tells whether something listens on a unix socket.
func socketThere(path string) bool {
	if info, err := os.Stat(path); err != nil || info.Mode()&os.ModeSocket == 0 {
		return false
	}
	c, err := net.DialTimeout("unix", strings.TrimPrefix(path, "unix://"), 200*time.Millisecond)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
