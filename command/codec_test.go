package command

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// What is refused in a request that changes something, because two readers of
// the same bytes could understand it differently.
func TestChangingRequestsMeanOneThing(t *testing.T) {
	for payload, want := range map[string]string{
		`{"argv":["ls"],"argv":["rm"]}`:                             `"argv" is given twice`,
		`{"argv":["ls"],"env":{"A":"1","A":"2"}}`:                   `"env.A" is given twice`,
		`{"argv":["ls"],"session":{"id":"a","id":"b","credit":1}}`:  `"session.id" is given twice`,
		`{"Argv":["ls"]}`:                                           `unknown field "Argv"`,
		`{"argv":["ls"],"HOST":true}`:                               `unknown field "HOST"`,
		`{"argv":["ls"],"ho\u017ft":true}`:                          `unknown field "hoſt"`, // folds to "host"
		`{"argv":["ls"],"session":{"id":"a","credit":1,"extra":1}}`: `unknown field "session.extra"`,
		`{"argv":["ls"],"shell":"x"}`:                               `unknown field "shell"`,
		`{"argv":["l` + "\xff" + `s"]}`:                             "not valid UTF-8",
		`{"argv":["ls"]} {"argv":["rm"]}`:                           "after top-level value",
		`{"argv":["ls"]}]`:                                          "after top-level value",
		`["ls"]`:                                                    "want a JSON object",
		`null`:                                                      "want a JSON object",
		`{"argv":"ls"}`:                                             "argv: want a list",
		`{"argv":["ls",2]}`:                                         "argv[1]: want a string",
		`{"argv":["ls"]`:                                            "EOF",
		"\ufeff{}":                                                  "want a JSON object",
		`{"argv":` + strings.Repeat("[", 200_000):                   "argv[0]: want a string",
		`{"argv":["` + strings.Repeat("x", MaxDocument) + `"]}`:     "more than the 524288 allowed",
	} {
		_, err := DecodeRequest[ExecRequest](VerbExec, []byte(payload))
		if !errors.Is(err, &Error{Outcome: OutcomeRejected, Kind: KindBadRequest}) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %s", payload, err, want)
		}
	}
	// Names of the environment differ by case, and are data.
	got, err := DecodeRequest[ExecRequest](VerbExec, []byte(` {"argv":["ls"],"env":{"PATH":"1","path":"2"}}`+"\n"))
	if err != nil || len(got.Env) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	// Two spellings of one request have two digests: the second is not a replay.
	if PayloadDigest([]byte(`{"argv":["ls"]}`)) == PayloadDigest([]byte(`{"argv": ["ls"]}`)) {
		t.Error("one digest for two payloads")
	}
}

func TestReadingRequestsAreLenient(t *testing.T) {
	for _, payload := range []string{"", " \n", "{}", `{"x":1}`, `{"x":1,"x":2}`} {
		if _, err := DecodeRequest[PingRequest](VerbPing, []byte(payload)); err != nil {
			t.Errorf("%q: %v", payload, err)
		}
	}
	for _, payload := range []string{"x", "[]", "1", "null", `{"a":}`} {
		if _, err := DecodeRequest[PingRequest](VerbPing, []byte(payload)); !errors.Is(err, &Error{Outcome: OutcomeRejected}) {
			t.Errorf("%q: %v", payload, err)
		}
	}
}

func TestRepliesThatCannotBeReadAreFailures(t *testing.T) {
	for _, payload := range []string{"", "x", "[]", `{"uptime_s":-1}`, `{"uptime_s":"x"}`, "{}{}", `{"x":"` + strings.Repeat("x", MaxDocument) + `"}`} {
		_, err := DecodeReply[PingReply](nil, []byte(payload))
		if !errors.Is(err, ErrBadReply) || !errors.Is(err, &Error{Outcome: OutcomeFailed}) {
			t.Errorf("%.20q: %v", payload, err)
		}
	}
}

func TestErrorRepliesSurviveTheWire(t *testing.T) {
	for _, kind := range Kinds() {
		h := map[string][]string{}
		sent := NewError(kind, "because of %d", 1)
		sent.RequestID = reqID
		_, err := DecodeReply[PingReply](h, nil)
		if !errors.Is(err, ErrBadReply) {
			t.Errorf("no header: %v", err)
		}
		data := EncodeError(h, sent)
		_, err = DecodeReply[PingReply](h, data)
		var got *Error
		if !errors.As(err, &got) || *got != *sent {
			t.Errorf("%+v became %+v", sent, got)
		}
	}
	h := map[string][]string{}
	data := EncodeError(h, &Error{Outcome: OutcomeTimeout, Message: strings.Repeat("é", MaxMessage)})
	got, ok := DecodeError(h, data)
	if !ok || got.Kind != KindInternal || len(got.Message) > MaxMessage || !strings.HasSuffix(got.Message, "é…") {
		t.Errorf("%+v", got)
	}
}

// A device chooses what stands in an error reply; it must not steer a terminal.
func TestErrorRepliesCannotSteerATerminal(t *testing.T) {
	h := map[string][]string{HeaderError: {"denied\x1b[2J"}}
	data, err := json.Marshal(ErrorReply{Error: ErrorDetail{Message: "a\x1b[2Jb\r\nc\u202e\u0085", RequestID: "\x1b"}})
	if err != nil {
		t.Fatal(err)
	}
	e, ok := DecodeError(h, data)
	if !ok || e.Kind != KindInternal || e.Message != "a\ufffd[2Jb\ufffd\ufffdc\ufffd\ufffd" || e.RequestID != "" {
		t.Errorf("%q %q %q", e.Kind, e.Message, e.RequestID)
	}
	for _, payload := range []string{"", "x", `{"error":1}`, `{"error":{"message":"` + strings.Repeat("x", MaxDocument) + `"}}`} {
		e, ok := DecodeError(map[string][]string{HeaderError: {"busy"}}, []byte(payload))
		if !ok || e.Outcome != OutcomeBusy || e.Message == "" {
			t.Errorf("%.20q: %+v", payload, e)
		}
	}
}

func TestDocumentsOfAnotherSchemaAreRefused(t *testing.T) {
	for payload, want := range map[string]string{
		`{}`: `"schema":0`, `{"schema":2}`: `"schema":2`, `{"schema":"1"}`: "cannot unmarshal", ``: "JSON object", `[]`: "JSON object",
		`{"schema":1,"x":"` + strings.Repeat("x", MaxDocument) + `"}`: "allowed",
	} {
		for name, decode := range documentDecoders {
			if err := decode([]byte(payload)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %.20q: %v, want %s", name, payload, err, want)
			}
		}
	}
	for name, decode := range documentDecoders {
		if err := decode([]byte(`{"schema":1,"new":true}`)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

var documentDecoders = map[string]func([]byte) error{
	"status":    func(b []byte) error { _, err := DecodeDocument[Status](b); return err },
	"heartbeat": func(b []byte) error { _, err := DecodeDocument[Heartbeat](b); return err },
	"audit":     func(b []byte) error { _, err := DecodeDocument[AuditRecord](b); return err },
	"desired":   func(b []byte) error { _, err := DecodeDocument[DesiredState](b); return err },
	"labels":    func(b []byte) error { _, err := DecodeDocument[DeviceLabels](b); return err },
}
