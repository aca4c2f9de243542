package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// ErrBadReply is wrapped by the error of a reply that could not be read.
var ErrBadReply = errors.New("unreadable reply")

// DecodeRequest reads the payload of a request for verb into T. An empty
// payload is the zero T. Where the verb changes something, the payload must
// mean one thing to every reader: unknown fields, names in another case, a name
// given twice and invalid UTF-8 are refused. Elsewhere unknown fields are
// ignored. Errors are an [*Error] with [KindBadRequest].
func DecodeRequest[T any](verb Verb, data []byte) (T, error) {
	var request T
	if len(data) > MaxDocument {
		return request, badRequest("payload has %d bytes, more than the %d allowed", len(data), MaxDocument)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return request, nil
	}
	if err := decodeObject(data, &request, verb.Changes()); err != nil {
		return request, badRequest("payload of %s: %v", verb, err)
	}
	return request, nil
}

// DecodeReply reads a reply: the verb's object, or the [*Error] of an error
// reply. A payload that does not parse is [OutcomeFailed] and wraps
// [ErrBadReply]. Unknown fields are ignored.
func DecodeReply[T any](h map[string][]string, data []byte) (T, error) {
	var reply T
	if e, ok := DecodeError(h, data); ok {
		return reply, e
	}
	if len(data) > MaxDocument {
		return reply, &Error{Outcome: OutcomeFailed, Err: fmt.Errorf("%w: %d bytes, more than the %d allowed", ErrBadReply, len(data), MaxDocument)}
	}
	if err := decodeObject(data, &reply, false); err != nil {
		return reply, &Error{Outcome: OutcomeFailed, Err: fmt.Errorf("%w: %v", ErrBadReply, err)}
	}
	return reply, nil
}

// Document is a stored document: it knows its schema number.
type Document interface {
	Status | Heartbeat | AuditRecord | DesiredState | DeviceLabels | JobResult
	schema() int
}

// DecodeDocument reads a stored document, refusing one that is too large or
// that has another schema number. Unknown fields are ignored, so that older
// readers can read newer documents of the same schema.
func DecodeDocument[T Document](data []byte) (T, error) {
	var doc T
	if len(data) > MaxDocument {
		return doc, fmt.Errorf("document has %d bytes, more than the %d allowed", len(data), MaxDocument)
	}
	if err := decodeObject(data, &doc, false); err != nil {
		return doc, err
	}
	if got := doc.schema(); got != Schema {
		return doc, fmt.Errorf(`document has "schema":%d, this version reads %d`, got, Schema)
	}
	return doc, nil
}

// decodeObject reads exactly one JSON object.
func decodeObject(data []byte, into any, strict bool) error {
	trimmed := bytes.TrimLeft(data, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] != '{' {
		return errors.New("want a JSON object")
	}
	if strict {
		if err := checkStrict(trimmed, reflect.TypeOf(into).Elem()); err != nil {
			return err
		}
	}
	return json.Unmarshal(trimmed, into) // refuses whatever follows the object
}
