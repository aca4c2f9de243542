package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"
)

// checkStrict refuses what encoding/json lets pass and another reader may
// understand differently: a field that t does not have, or has in another case;
// a name given twice in one object; bytes that are not UTF-8, which would be
// replaced. Syntax errors are left to the decoder that follows.
func checkStrict(data []byte, t reflect.Type) error {
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	return checkValue(json.NewDecoder(bytes.NewReader(data)), t, "", 0)
}

// maxDepth is how deep values may be nested in a request. The tokens of the
// decoder have no such limit of their own, and each level costs stack and a path
// as long as all levels above it.
const maxDepth = 32

func checkValue(dec *json.Decoder, t reflect.Type, path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	token, err := dec.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('{'):
		return checkObject(dec, t, path, depth)
	case json.Delim('['):
		var elem reflect.Type
		if t != nil && t.Kind() == reflect.Slice {
			elem = t.Elem()
		}
		for dec.More() {
			if err := checkValue(dec, elem, path+"[]", depth+1); err != nil {
				return err
			}
		}
		_, err := dec.Token()
		return err
	}
	return nil
}

func checkObject(dec *json.Decoder, t reflect.Type, path string, depth int) error {
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		at := strings.TrimPrefix(path+"."+name, ".")
		if seen[name] {
			return fmt.Errorf("field %s is given twice", quote(at))
		}
		seen[name] = true
		var value reflect.Type
		switch {
		case t != nil && t.Kind() == reflect.Struct:
			field, ok := fieldByName(t, name)
			if !ok {
				return fmt.Errorf("unknown field %s", quote(at))
			}
			value = field
		case t != nil && t.Kind() == reflect.Map:
			value = t.Elem()
		}
		if err := checkValue(dec, value, at, depth+1); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

// fieldByName finds the field of t whose JSON name is exactly name. The structs
// of this package embed nothing, so that no promotion is looked for.
func fieldByName(t reflect.Type, name string) (reflect.Type, bool) {
	for i := range t.NumField() {
		field := t.Field(i)
		tag, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if tag == name && tag != "-" && field.IsExported() {
			return field.Type, true
		}
	}
	return nil, false
}
