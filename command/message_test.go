package command

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// message is one message of a session as it goes over the wire.
func message(t *testing.T, subject string, header func(map[string][]string), payload any) string {
	t.Helper()
	h := map[string][]string{}
	if header != nil {
		header(h)
	}
	var b strings.Builder
	fmt.Fprintln(&b, subject)
	for _, name := range slices.Sorted(maps.Keys(h)) {
		fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(h[name], ", "))
	}
	if payload != nil {
		data, err := json.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "\n%s\n", data)
	}
	return b.String()
}

// Each kind of message of a session, with its subject and its headers.
func TestSessionMessagesArePinned(t *testing.T) {
	const device, file = "vm-device-00", "testdata/golden/session_messages.txt"
	uid := UID("ops")
	seq := func(n uint64) func(map[string][]string) {
		return func(h map[string][]string) { WriteSeq(h, n) }
	}
	control := func(op SessionOp) string { return SessionControlSubject(device, uid, sid, op) }
	output := SessionSubject(device, uid, sid)
	got := strings.Join([]string{
		message(t, control(OpCredit), nil, Credit{Ack: 41, Credit: 262144}),
		message(t, control(OpIn), seq(1), "bytes"),
		message(t, control(OpEOF), seq(2), nil),
		message(t, control(OpResize), seq(1), Resize{Rows: 40, Cols: 120}),
		message(t, control(OpSignal), seq(2), Signal{Name: "TERM"}),
		message(t, control(OpCancel), nil, nil),
		message(t, output, Chunk{Seq: 1, Stream: StreamStderr}.Write, "bytes"),
		message(t, output, Chunk{Stream: StreamProgress}.Write, Progress{Sent: 1, Ack: 2, Credit: InputWindow}),
		message(t, output, Chunk{Seq: 2, End: EndEOF}.Write, SessionEnd{ExitCode: ptr(0), Bytes: SessionBytes{Stderr: 7}}),
	}, "---\n")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the messages are\n%swant\n%s", got, want)
	}
}

func TestControlSeq(t *testing.T) {
	for name, c := range map[string]struct {
		values []string
		want   uint64
		ok     bool
	}{
		"none": {nil, 0, true}, "one": {[]string{"1"}, 1, true}, "the highest": {[]string{"18446744073709551615"}, 1<<64 - 1, true},
		"zero": {[]string{"0"}, 0, false}, "two": {[]string{"1", "1"}, 0, false}, "no number": {[]string{"x"}, 0, false}, "empty": {[]string{""}, 0, false},
	} {
		h := map[string][]string{}
		if c.values != nil {
			h[HeaderSeq] = c.values
		}
		if n, err := ControlSeq(h); n != c.want || (err == nil) != c.ok {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}
