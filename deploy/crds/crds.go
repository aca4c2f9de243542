// Package crds holds the definitions of Device and Deployment, as api/v1alpha1
// generates them.
package crds

import "embed"

// Files has one file for each definition.
//
//go:embed *.yaml
var Files embed.FS
