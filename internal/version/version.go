// Package version tells which version of Harmony Fleet a program is. One rule
// serves every binary, so that an agent and the operator's tools that were built
// together say the same.
//
//	fmt.Println("fleet-agent", version.String())
package version

import "runtime/debug"

// linked is set by whoever builds without the Go tool's own record, for example
// from a source archive:
//
//	go build -ldflags '-X github.com/harmony-fleet/fleet/internal/version.linked=v1.2.3' ./cmd/...
var linked string

// String is the version the linker was given, or else the one that the Go tool
// recorded of the module, or else "(devel)", which is the Go tool's own word for
// a build that has none.
func String() string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
