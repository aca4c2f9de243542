// Package crds has the definitions of the fleet's resources as they are installed:
//
//	kubectl apply --server-side -f deploy/crds
//
// They are generated from package api/v1alpha1 by `go generate ./api/...`.
package crds

import "embed"

// Files are the definitions, one YAML file for each.
//
//go:embed *.yaml
var Files embed.FS
