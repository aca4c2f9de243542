package credentials

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// maxFile is the largest file read: secrets are small, and a path that points
// at a log or a device must not fill the memory of the agent.
const maxFile = 64 << 10

// secretFile reads one file that holds a secret.
type secretFile struct {
	key    string // of the configuration, for errors
	path   string
	log    *slog.Logger
	shared bool        // readable by others on purpose
	warned atomic.Bool // about its mode, once
}

func (f *secretFile) fail(format string, args ...any) error {
	return fmt.Errorf("[credentials] %s: %w", f.key, fmt.Errorf(format, args...))
}

func (f *secretFile) read() ([]byte, error) {
	// Opening a pipe without a writer would block for ever, hence the look first.
	info, err := os.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, f.fail("%s does not exist: create it or correct the path: %w", f.path, fs.ErrNotExist)
	case err != nil:
		return nil, f.fail("cannot look at the file: %w", err)
	case !info.Mode().IsRegular():
		return nil, f.fail("%s is not a regular file: give the path of a file", f.path)
	}
	file, err := os.Open(f.path)
	if err != nil {
		return nil, f.fail("cannot read: %w: check its owner and mode", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, f.fail("cannot read: %w", err)
	}
	if len(data) > maxFile {
		return nil, f.fail("%s is larger than %d KiB: this is not a file of that kind", f.path, maxFile>>10)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && !f.shared && f.warned.CompareAndSwap(false, true) {
		f.log.Warn("secret file can be read by other users: set its mode to 0600", "file", f.path, "mode", fmt.Sprintf("%04o", mode))
	}
	return data, nil
}

// readLine reads a secret that is one line; white space around it is dropped.
func (f *secretFile) readLine() (string, error) {
	data, err := f.read()
	if err != nil {
		return "", err
	}
	s := strings.TrimSpace(string(data))
	if s == "" {
		return "", f.fail("%s is empty: write the secret to it", f.path)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", f.fail("%s holds more than one line or control characters: it must hold the secret alone", f.path)
	}
	return s, nil
}

// passwordFile is type shared with the password in a file.
type passwordFile struct {
	user string
	file secretFile
}

func (p *passwordFile) Credential(context.Context) (Credential, error) {
	pw, err := p.file.readLine()
	if err != nil {
		return Credential{}, err
	}
	return Credential{User: p.user, Password: pw}, nil
}

// tokenFile is types token-file and kubernetes.
type tokenFile struct {
	account string
	file    secretFile
}

func (t *tokenFile) Credential(context.Context) (Credential, error) {
	tok, err := t.file.readLine()
	if err != nil {
		return Credential{}, err
	}
	if strings.ContainsRune(tok, ' ') {
		return Credential{}, t.file.fail("%s holds more than one word: it must hold the token alone", t.file.path)
	}
	cred := Credential{User: t.account, Token: tok}
	// A token that is no JWT is passed on with its end unknown: the server judges it.
	if claims, err := decodeClaims(tok); err == nil {
		cred.Expiry = claims.Expiry
	}
	if !cred.Expiry.IsZero() && time.Now().After(cred.Expiry) {
		// Not refused here: the clock of a device may be what is wrong.
		t.file.log.Warn("token in file has expired by this machine's clock: check what renews it, and the clock",
			"file", t.file.path, "expired", cred.Expiry.UTC())
	}
	return cred, nil
}
