// Package deployment is the controller of Deployments: it brings scores to devices,
// and what devices say of them back.
//
//	err := deployment.Add(mgr, deployment.Options{Mirror: m, Namespaces: []string{"fleet"}})
//
// Add puts two things into the manager, which both need leader election: the
// reconciler, and a watch (index.go) that knows which Deployments a change of a device
// concerns. Each pass over one Deployment reads the whole truth from the mirror and
// the caches, and does what is missing:
//
//	goal.go       what the Deployment asks for, read and checked
//	revision.go   its score is kept as a ControllerRevision; rollbackTo
//	facts.go      which devices it selects, and where it stands on each
//	rollout       (package) which of them get it now
//	document.go   its key in their desired states, written by compare-and-set
//	status.go     conditions, counts and events
//	removal.go    what a deletion waits for; keys of Deployments that are gone
//
// A Deployment writes its own key of a desired state only, which carries its name.
// Keys that somebody put by hand are left alone, except the one of its own name: what
// is declared wins. Neither a pause nor a stop of the rollout keeps the key on devices
// that are not selected any more.
//
// What is kept in memory is what only time tells (rollout.Memory), and what a pass
// would find out again. After a restart it is made anew from the status and from what
// is stored; a pass may be repeated at any point.
//
// Rights: deployments get, list, watch, update, and update of deployments/status;
// devices get, list, watch; controllerrevisions (apps) get, list, create, update,
// delete; events create, patch.
package deployment
