package command

import "testing"

func TestReadChunkRefusesWhatIsAmbiguous(t *testing.T) {
	for name, c := range map[string]struct {
		h  map[string][]string
		ok bool
	}{
		"output":               {map[string][]string{HeaderSeq: {"1"}, HeaderStream: {"stderr"}}, true},
		"end":                  {map[string][]string{HeaderSeq: {"2"}, HeaderEnd: {"lease_expired"}}, true},
		"progress":             {map[string][]string{HeaderStream: {"progress"}}, true},
		"nothing":              {nil, false},
		"output without seq":   {map[string][]string{HeaderStream: {"stdout"}}, false},
		"end without seq":      {map[string][]string{HeaderEnd: {"eof"}}, false},
		"progress with seq":    {map[string][]string{HeaderSeq: {"1"}, HeaderStream: {"progress"}}, false},
		"both":                 {map[string][]string{HeaderSeq: {"1"}, HeaderStream: {"pty"}, HeaderEnd: {"eof"}}, false},
		"unknown stream":       {map[string][]string{HeaderSeq: {"1"}, HeaderStream: {"stdin"}}, false},
		"unknown end":          {map[string][]string{HeaderSeq: {"1"}, HeaderEnd: {"done"}}, false},
		"zero":                 {map[string][]string{HeaderSeq: {"0"}, HeaderStream: {"pty"}}, false},
		"another spelling":     {map[string][]string{HeaderSeq: {"01"}, HeaderStream: {"pty"}}, false},
		"negative":             {map[string][]string{HeaderSeq: {"-1"}, HeaderStream: {"pty"}}, false},
		"more than is counted": {map[string][]string{HeaderSeq: {"18446744073709551616"}, HeaderStream: {"pty"}}, false},
	} {
		if got, err := ReadChunk(c.h); (err == nil) != c.ok {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
