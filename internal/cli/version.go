package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/command"
)

// Version is set by the linker (-X); without it the Go tool's record is used.
var Version string

func version() string {
	if Version != "" {
		return Version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and the protocol number",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json() {
				return a.writeJSON(struct {
					Version  string `json:"version"`
					Protocol int    `json:"protocol"`
					Go       string `json:"go"`
				}{version(), command.Protocol, runtime.Version()})
			}
			_, err := fmt.Fprintf(a.stdout, "fleet %s (protocol %d, %s %s/%s)\n", version(), command.Protocol, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
