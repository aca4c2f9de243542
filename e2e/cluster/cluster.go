// Package cluster says what the end-to-end harness wants of a Kubernetes cluster,
// whoever provides it:
//
//	p, err := provider.Select(ctx, provider.Options{})
//	c, err := p.Up(ctx)                   // a node is Ready and takes Pods
//	if err != nil { … }
//	err = c.LoadImages(ctx, agentImage)   // from package e2e/image
//	… use c.Kubeconfig(), dial c.NodeAddresses()[0]:<node port> …
//	err = c.Down(ctx)
//
// A provider is a way of having a cluster (made from nothing on this machine, a
// k3d cluster, one that somebody else runs); the tests are the same for each.
package cluster

import (
	"context"
	"io"
)

// Provider makes a cluster available.
type Provider interface {
	// Name is the provider's name as people select it, "local" for example.
	Name() string

	// Up returns a cluster that is Ready and takes Pods, making it first
	// where there is none. It is idempotent, and safe to call from several
	// processes at once: they get the same cluster. An error says what is wrong
	// and what to do about it; after an error nothing that Up made is left.
	Up(ctx context.Context) (Cluster, error)
}

// Cluster is a cluster that is up.
type Cluster interface {
	// Kubeconfig is the path of a kubeconfig file with full rights.
	Kubeconfig() string

	// NodeAddresses are the addresses at which NodePorts answer from this
	// machine. There is none where this machine does not reach the nodes: forward a
	// port of a Pod then.
	NodeAddresses() []string

	// LoadImages makes images available to Pods on every node, under the name
	// that Ref gives: it loads them into the nodes, or pushes them to the registry
	// that the cluster was asked for with. Images that are there already cost a look
	// and nothing else.
	LoadImages(ctx context.Context, images ...Image) error

	// Down takes the cluster down and removes every trace of it where the
	// provider made it, and does nothing where it did not.
	Down(ctx context.Context) error
}

// Image is an image that can be given to a cluster.
type Image interface {
	// Ref is the full name by which Pods refer to the image, registry host and
	// tag included. An image of the same Ref is taken to be the same image, so
	// the tag should be made from the content.
	Ref() string

	// WriteArchive writes the image as a tarred OCI image layout.
	WriteArchive(w io.Writer) error
}
