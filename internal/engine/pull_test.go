package engine

import (
	"strings"
	"testing"
)

func TestPullMessagesAreRead(t *testing.T) {
	var last Progress
	err := readPull(strings.NewReader(`{"status":"Pulling from x","id":"1"}
{"status":"Downloading","progressDetail":{"current":5,"total":10},"id":"a"}
{"status":"Downloading","progressDetail":{"current":1,"total":20},"id":"b"}
{"status":"Downloading","progressDetail":{"current":10,"total":10},"id":"a"}
{"stream":"done\n"}
`), func(p Progress) { last = p })
	if err != nil || last != (Progress{Text: "done", Done: 11, Size: 30}) {
		t.Errorf("%+v, %v", last, err)
	}
	for text, want := range map[string]string{
		`{"status":"x"}` + "\n" + `{"error":"manifest unknown","errorDetail":{"message":"manifest unknown"}}`: "manifest unknown",
		`{"status":"x"}{`: "unreadable answer",
		`what`:            "unreadable answer",
		`{"status":"` + strings.Repeat("x", 4*maxPullMessage) + `"}`: "unreadable answer",
	} {
		if err := readPull(strings.NewReader(text), func(Progress) {}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %s", text, err, want)
		}
	}
	// Many small messages are no large one.
	if err := readPull(strings.NewReader(strings.Repeat(`{"status":"`+strings.Repeat("x", 1000)+`"}`+"\n", 3000)), func(Progress) {}); err != nil {
		t.Error(err)
	}
}

func FuzzReadPull(f *testing.F) {
	f.Add([]byte(`{"status":"Downloading","progressDetail":{"current":5,"total":10},"id":"a"}`))
	f.Add([]byte(`{"error":"e"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		calls := 0
		_ = readPull(strings.NewReader(string(data)), func(p Progress) { calls++ })
		if calls > len(data) {
			t.Errorf("%d calls for %d bytes", calls, len(data))
		}
	})
}
