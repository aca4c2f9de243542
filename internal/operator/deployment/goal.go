package deployment

import (
	"bytes"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
)

// goal is what one generation of a Deployment asks for.
type goal struct {
	uid        types.UID
	generation int64
	selector   *selector // nil: it cannot be read
	score      command.Score

	// reason and fault say why nothing can be rolled out; empty: it can.
	reason, fault string
}

// Reasons of the condition Valid.
const (
	reasonAccepted        = "Accepted"
	reasonInvalidSelector = "InvalidSelector"
	reasonInvalidScore    = "InvalidScore"
)

func newGoal(d *v1alpha1.Deployment) *goal {
	g := &goal{uid: d.UID, generation: d.Generation}
	var err error
	if g.selector, err = newSelector(d.Spec.Selector); err != nil {
		g.reason, g.fault = reasonInvalidSelector, "spec.selector: "+err.Error()
		return g
	}
	if g.score, err = scoreOf(d.Spec.Score); err != nil {
		g.reason, g.fault = reasonInvalidScore, "spec.score: "+err.Error()
	}
	return g
}

// scoreOf gives the score in its canonical form. Data of PodmanV0 is checked as
// devices check it; other types are theirs to accept.
func scoreOf(s v1alpha1.Score) (command.Score, error) {
	raw, err := json.Marshal(s.Data)
	if err != nil {
		return command.Score{}, err
	}
	score := command.Score{Type: s.Type}
	if score.Data, err = canonical(raw); err != nil {
		return command.Score{}, err
	}
	if len(score.Data) > command.MaxDocument {
		return command.Score{}, fmt.Errorf("data: %d bytes, more than the %d that a device takes", len(score.Data), command.MaxDocument)
	}
	if s.Type == command.ScorePodmanV0 {
		if _, err := score.Services(); err != nil {
			return command.Score{}, err
		}
	}
	return score, nil
}

// canonical writes JSON as it is written into documents: keys in order, no space.
// Equal values have equal bytes.
func canonical(data []byte) (json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// selector is a v1alpha1.DeviceSelector, made for asking often.
type selector struct {
	all    bool
	names  map[string]struct{}
	labels labels.Selector // nil: no labels are asked for
}

func newSelector(s v1alpha1.DeviceSelector) (*selector, error) {
	out := &selector{all: s.All, names: map[string]struct{}{}}
	for _, name := range s.Names {
		out.names[name] = struct{}{}
	}
	if len(s.MatchLabels) > 0 || len(s.MatchExpressions) > 0 {
		var err error
		if out.labels, err = metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchLabels: s.MatchLabels, MatchExpressions: s.MatchExpressions}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *selector) matches(id string, of labels.Set) bool {
	if s == nil {
		return false
	}
	if _, named := s.names[id]; s.all || named {
		return true
	}
	return s.labels != nil && s.labels.Matches(of)
}
