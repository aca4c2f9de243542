// Package tomlconfig is how every program of the fleet reads its TOML
// configuration: an unknown key is an error, and no error quotes the file, which
// may hold a password.
//
//	type Config struct {
//		Timeout tomlconfig.Duration `toml:"timeout"`
//		NATS    struct {
//			URL tomlconfig.URLs `toml:"url"`
//		} `toml:"nats"`
//		Log tomlconfig.Log `toml:"log"`
//	}
//	cfg, err := tomlconfig.Decode[Config](raw)
//	logger := cfg.Log.New(os.Stderr)
package tomlconfig

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Decode reads a whole document into a T. Every unknown key is named with its
// line; the first of other faults with line and column, and its key where there
// is one. On error the T is zero.
func Decode[T any](raw []byte) (T, error) {
	var into T
	dec := toml.NewDecoder(bytes.NewReader(raw)).DisallowUnknownFields().EnableUnmarshalerInterface()
	if err := dec.Decode(&into); err != nil {
		var zero T
		return zero, explain(err)
	}
	return into, nil
}

// explain keeps positions and key names of a TOML error and drops the library's
// own text, which quotes the file.
func explain(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var all []error
		for _, e := range strict.Errors {
			row, _ := e.Position()
			all = append(all, fmt.Errorf("line %d: unknown key %q", row, strings.Join(e.Key(), ".")))
		}
		return errors.Join(all...)
	}
	if errors.Is(err, errURLs) {
		return errURLs
	}
	var bad *toml.DecodeError
	if !errors.As(err, &bad) {
		return errors.New("not valid TOML")
	}
	row, col := bad.Position()
	key := strings.Join(bad.Key(), ".")
	switch {
	case strings.HasSuffix(bad.Error(), errDuration.Error()): // it has no Unwrap
		return fmt.Errorf("line %d, column %d: key %q is %w", row, col, key, errDuration)
	case key != "":
		return fmt.Errorf("line %d, column %d: key %q has a value of the wrong kind", row, col, key)
	}
	return fmt.Errorf("line %d, column %d: not valid TOML, or a value of the wrong kind", row, col)
}

// Duration is written as Go writes it, for example "1.5s" or "12h".
type Duration time.Duration

var errDuration = errors.New(`not a duration: write "12h" or "90s"`)

// UnmarshalText reads what [time.ParseDuration] reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return errDuration
	}
	*d = Duration(v)
	return nil
}

// URLs is one URL or a list of them. It does not check them. Its error names the
// key nats.url, under which every program has it: go-toml tells no position.
type URLs []string

var errURLs = errors.New("nats.url: want a string or a list of strings")

// UnmarshalTOML takes a string or an array of strings.
func (u *URLs) UnmarshalTOML(data []byte) error {
	var one struct{ V string }
	if err := toml.Unmarshal(append([]byte("V = "), data...), &one); err == nil {
		*u = URLs{one.V}
		return nil
	}
	var many struct{ V []string }
	if err := toml.Unmarshal(append([]byte("V = "), data...), &many); err != nil {
		return errURLs
	}
	*u = many.V
	return nil
}
