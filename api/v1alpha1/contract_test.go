package v1alpha1

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/command"
)

// TestServicesAreThoseOfTheAgent: the types of services here and in package command
// have the same JSON fields of the same types, since the operator hands what is written
// here on as it is.
func TestServicesAreThoseOfTheAgent(t *testing.T) {
	for _, pair := range []struct{ here, agent any }{
		{Service{}, command.Service{}}, {Resources{}, command.Resources{}}, {HealthCheck{}, command.HealthCheck{}}, {ScoreData{}, command.PodmanV0{}},
	} {
		here, agent := fields(reflect.TypeOf(pair.here)), fields(reflect.TypeOf(pair.agent))
		if !reflect.DeepEqual(here, agent) {
			t.Errorf("%T has %v,\n%T has %v", pair.here, here, pair.agent, agent)
		}
	}
}

// fields are the kinds of a struct's JSON fields by name.
func fields(t reflect.Type) map[string]string {
	out := map[string]string{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		kind := f.Type
		for kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		text := kind.Kind().String()
		switch kind.Kind() {
		case reflect.Slice:
			text = "[]" + kind.Elem().Kind().String()
		case reflect.Map:
			text = "map " + kind.Elem().Kind().String()
		}
		out[name] = text
	}
	return out
}

// FuzzScoreData: whatever object is read is written back with the same meaning.
func FuzzScoreData(f *testing.F) {
	for _, s := range []string{`{}`, `{"services":[{"name":"a","image":"b"}]}`, `{"x":[1,{"y":null}]}`, `[]`, `null`, `{"services":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d ScoreData
		if json.Unmarshal(data, &d) != nil {
			return
		}
		out, err := json.Marshal(d.DeepCopy())
		if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		var want, got any
		if json.Unmarshal(data, &want) != nil || json.Unmarshal(out, &got) != nil || !reflect.DeepEqual(want, got) {
			t.Fatalf("%s came back as %s", data, out)
		}
	})
}
