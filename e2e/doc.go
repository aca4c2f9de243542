// Package e2e brings the whole fleet up in a real Kubernetes cluster for a test:
// NATS with TLS and JetStream, the token issuer, the auth callout, streams and
// buckets, and any number of agents, each in a Pod of its own, in a namespace that
// is made for the test and goes away with it.
//
//	func TestPing(t *testing.T) {
//		stack := e2e.New(t, e2e.Options{})
//		reply, err := stack.Client().Ping(t.Context(), stack.DeviceIDs[0])
//		…
//	}
//
// [New] is for tests: it fails the test where the fleet does not come up, saves what
// there is to know when the test fails, and cleans up. [BringUp] is for everything
// else; whoever calls it calls [Stack.Close].
//
// The cluster is that of a provider (package e2e/cluster), the images are built from
// this module without a container engine (package e2e/image), and both are shared by
// all tests: only the namespace is new. Several stacks can be up at once, in one
// process or many.
//
// # What is left behind
//
// Nothing, after Close, which also works where the fleet came up only in part, and
// which Ctrl-C and a panic of the test lead to. A process that is killed cannot
// clean up: its namespaces carry the name of the process and an expiry that it
// renews while it lives, and the next BringUp sweeps those whose process is gone or
// whose expiry has passed.
package e2e
