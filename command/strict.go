package command

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
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
	if t != nil && (reflect.PointerTo(t).Implements(jsonUnmarshaler) || reflect.PointerTo(t).Implements(textUnmarshaler)) {
		t = nil // it reads itself
	}
	token, err := dec.Token()
	if err != nil {
		return err
	}
	if want := mismatch(token, t); want != "" {
		return fmt.Errorf("%s: want %s", path, want)
	}
	switch token {
	case json.Delim('{'):
		return checkObject(dec, t, path, depth)
	case json.Delim('['):
		var elem reflect.Type
		if t != nil && t.Kind() == reflect.Slice {
			elem = t.Elem()
		}
		for i := 0; dec.More(); i++ {
			if err := checkValue(dec, elem, path+"["+strconv.Itoa(i)+"]", depth+1); err != nil {
				return err
			}
		}
		_, err := dec.Token()
		return err
	}
	return nil
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// mismatch tells what t wants where a value that starts with token is something
// else; the decoder would say so too, without the index of a list's element.
func mismatch(token json.Token, t reflect.Type) (want string) {
	if t == nil || token == nil {
		return ""
	}
	ok := true
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		want, ok = "an object", token == json.Delim('{')
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			want = "a string"
			_, ok = token.(string)
			break
		}
		want, ok = "a list", token == json.Delim('[')
	case reflect.String:
		want = "a string"
		_, ok = token.(string)
	case reflect.Bool:
		want = "true or false"
		_, ok = token.(bool)
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float64:
		want = "a number"
		_, ok = token.(float64)
	}
	if ok {
		return ""
	}
	return want
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
