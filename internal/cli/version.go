package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/version"
)

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
				}{version.String(), command.Protocol, runtime.Version()})
			}
			_, err := fmt.Fprintf(a.stdout, "fleet %s (protocol %d, %s %s/%s)\n", version.String(), command.Protocol, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
