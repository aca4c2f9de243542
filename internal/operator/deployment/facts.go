package deployment

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
	"github.com/harmony-fleet/fleet/internal/operator/rollout"
)

// survey is how a Deployment stands on the devices, at one moment.
type survey struct {
	matched []rollout.Device // in the order of their ids
	strays  []string         // have its key and are not selected
}

// survey looks at every device.
func (r *Controller) survey(ctx context.Context, key types.NamespacedName, st *state, now time.Time, deadline time.Duration) (survey, error) {
	var s survey
	members := map[string]struct{}{}
	exists := map[types.NamespacedName]bool{}
	for d := range r.mirror.All() {
		spec, object := r.index.spec(d.ID)
		of := spec.labels
		if !object {
			of = d.Labels
		}
		owner, owned := ownerKey(key.Name, d.Document.Owners[key.Name])
		owned = owned && owner == key
		switch {
		case st.goal.selector.matches(d.ID, of):
			// A document alone, put for a device that was never there, makes no device.
			if !d.Reported() && !object && !owned {
				continue
			}
		case owned && !spec.paused:
			s.strays = append(s.strays, d.ID)
			continue
		default:
			continue
		}
		members[d.ID] = struct{}{}
		fact := factOf(d, key, st.goal.score)
		fact.Paused = spec.paused
		if other, taken := otherOwner(d.Document, key); taken {
			there, err := r.exists(ctx, exists, other)
			if err != nil {
				return survey{}, err
			}
			if there {
				fact.Has, fact.Conflict = false, "the name is that of the Deployment "+other.String()+" there"
			}
		}
		if st.brought != nil {
			if why, ok := st.brought.refused(d); ok && fact.Conflict == "" {
				fact.Conflict = why
			}
			st.brought.memory.Fill(now, deadline, &fact)
		}
		s.matched = append(s.matched, fact)
	}
	slices.SortFunc(s.matched, func(a, b rollout.Device) int { return strings.Compare(a.ID, b.ID) })
	st.view.members.Store(&members)
	if st.brought != nil {
		st.brought.retain(members)
	}
	return s, nil
}

// factOf is what the mirror knows of the Deployment on a device.
func factOf(d mirror.Device, key types.NamespacedName, score command.Score) rollout.Device {
	doc := d.Document
	has, ok := doc.State.Deployments[key.Name]
	fact := rollout.Device{ID: d.ID, Online: d.Online, Has: ok, Revision: doc.Revision, Stored: doc.Stored}
	fact.Updated = ok && doc.Owners[key.Name] == key.String() && has.Type == score.Type && bytes.Equal(has.Data, score.Data)
	if doc.Fault != "" {
		fact.Conflict = "its desired state cannot be read, and would be lost: " + doc.Fault
	}
	if d.Status == nil {
		fact.Message = d.StatusFault
		return fact
	}
	if says, ok := d.Status.Deployments[key.Name]; ok {
		fact.Phase, fact.Reported, fact.Message = says.Phase, says.Revision, says.Fault()
	}
	return fact
}

// exists tells whether there is such a Deployment, which it asks once. One of a
// namespace that is not watched cannot be known, and does not count.
func (r *Controller) exists(ctx context.Context, known map[types.NamespacedName]bool, key types.NamespacedName) (bool, error) {
	if there, ok := known[key]; ok {
		return there, nil
	}
	if !r.watched(key.Namespace) {
		return false, nil
	}
	err := r.client.Get(ctx, key, &v1alpha1.Deployment{})
	if err != nil && !apierrors.IsNotFound(err) {
		return false, err
	}
	known[key] = err == nil
	return known[key], nil
}

// ownerKey reads an owner of a document; ok is false where it is not the owner of a
// key of that name.
func ownerKey(name, owner string) (key types.NamespacedName, ok bool) {
	namespace, of, found := strings.Cut(owner, "/")
	return types.NamespacedName{Namespace: namespace, Name: of}, found && of == name && namespace != ""
}

// otherOwner gives the Deployment, not key, that the document says has the name.
func otherOwner(doc mirror.Document, key types.NamespacedName) (other types.NamespacedName, taken bool) {
	if _, ok := doc.State.Deployments[key.Name]; !ok {
		return other, false
	}
	other, ok := ownerKey(key.Name, doc.Owners[key.Name])
	return other, ok && other != key
}
