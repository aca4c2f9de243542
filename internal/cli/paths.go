package cli

import (
	"fmt"
	"path/filepath"
)

// xdgDir is the directory of this program under the XDG base directory that
// variable names, or under home/fallback (XDG Base Directory Specification 0.8;
// a relative path in the variable is to be ignored).
func (a *app) xdgDir(variable, fallback string) (string, error) {
	if base := a.getenv(variable); filepath.IsAbs(base) {
		return filepath.Join(base, "harmony-fleet"), nil
	}
	if home := a.getenv("HOME"); home != "" {
		return filepath.Join(home, fallback, "harmony-fleet"), nil
	}
	return "", fmt.Errorf("neither %s nor HOME is set; set one of them", variable)
}

func (a *app) contextPath() (string, error) {
	dir, err := a.xdgDir("XDG_CONFIG_HOME", ".config")
	return filepath.Join(dir, "context.toml"), err
}

func (a *app) commandLogPath() (string, error) {
	dir, err := a.xdgDir("XDG_STATE_HOME", ".local/state")
	return filepath.Join(dir, "commands.log"), err
}
