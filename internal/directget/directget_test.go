package directget

import (
	"strings"
	"testing"
	"time"
)

func TestStoredMessagesAreRead(t *testing.T) {
	at := "2026-01-02T15:04:05.000000001Z"
	whole := func(change func(h map[string][]string)) map[string][]string {
		h := map[string][]string{HeaderSubject: {"fleet.status.d1"}, HeaderSequence: {"7"}, HeaderTimeStamp: {at}}
		change(h)
		return h
	}
	for name, tc := range map[string]struct {
		header  map[string][]string
		batch   bool
		want    Part
		wantErr string
	}{
		"a message":        {header: whole(func(map[string][]string) {}), want: Part{End: true}},
		"one of a batch":   {header: whole(func(map[string][]string) {}), batch: true},
		"deleted":          {header: whole(func(h map[string][]string) { h[HeaderKVOperation] = []string{"DEL"} }), want: Part{End: true, Message: Message{Deleted: true}}},
		"end, more":        {header: map[string][]string{HeaderStatus: {"204"}, HeaderPending: {"3"}, HeaderUpTo: {"9"}}, batch: true, want: Part{End: true, More: true, UpTo: 9}},
		"end":              {header: map[string][]string{HeaderStatus: {"204"}, HeaderPending: {"0"}}, batch: true, want: Part{End: true}},
		"end without word": {header: map[string][]string{HeaderStatus: {"204"}}, batch: true, wantErr: HeaderPending},
		"nothing found":    {header: map[string][]string{HeaderStatus: {"404"}, HeaderDescription: {"Message Not Found"}}, want: Part{End: true}},
		"no stream":        {header: map[string][]string{HeaderStatus: {"503"}}, wantErr: "fleet provision"},
		"refused":          {header: map[string][]string{HeaderStatus: {"413"}, HeaderDescription: {"Too Many Results"}}, wantErr: "Too Many Results"},
		"no sequence":      {header: whole(func(h map[string][]string) { delete(h, HeaderSequence) }), wantErr: HeaderSequence},
		"sequence 0":       {header: whole(func(h map[string][]string) { h[HeaderSequence] = []string{"0"} }), wantErr: HeaderSequence},
		"no time":          {header: whole(func(h map[string][]string) { delete(h, HeaderTimeStamp) }), wantErr: HeaderTimeStamp},
		"no subject":       {header: whole(func(h map[string][]string) { delete(h, HeaderSubject) }), wantErr: HeaderSubject},
		"no header":        {wantErr: HeaderSequence},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(tc.header, []byte("x"), tc.batch)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("err = %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.End != tc.want.End || got.More != tc.want.More || got.UpTo != tc.want.UpTo || got.Message.Deleted != tc.want.Message.Deleted {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if got.Message.Seq != 0 && (got.Message.Seq != 7 || got.Message.At.Format(time.RFC3339Nano) != at) {
				t.Errorf("message %+v", got.Message)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("", "", "fleet.status.d1", "1", "2026-01-02T15:04:05.000000001Z", "", "", true)
	f.Add("204", "EOB", "", "", "", "7", "12", true)
	f.Add("404", "Message Not Found", "", "", "", "", "", false)
	f.Add("503", "", "", "", "", "", "", false)
	f.Add("204", "EOB", "", "", "", strings.Repeat("\xff", 1000), "12", true) // the error must not repeat it all
	f.Fuzz(func(t *testing.T, status, description, subject, seq, at, pending, upTo string, batch bool) {
		h := map[string][]string{}
		for name, value := range map[string]string{
			HeaderStatus: status, HeaderDescription: description, HeaderSubject: subject, HeaderSequence: seq,
			HeaderTimeStamp: at, HeaderPending: pending, HeaderUpTo: upTo,
		} {
			if value != "" {
				h[name] = []string{value}
			}
		}
		p, err := Parse(h, nil, batch)
		switch {
		case err != nil:
			if len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		case p.Message.Seq != 0 && (p.Message.Subject == "" || status != ""):
			t.Errorf("accepted %+v", p)
		case p.Message.Seq == 0 && !p.End:
			t.Errorf("neither a message nor the end: %+v", p)
		case p.More && status != "204":
			t.Errorf("more after %q", status)
		}
	})
}
