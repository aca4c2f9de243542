package cli

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/stack"
)

// clearError holds what is true of every error: one line, the exit code, the
// words that tell what to do, and no secret.
func clearError(t *testing.T, o outputOf, code int, want string, secrets ...string) {
	t.Helper()
	if o.code != code || !strings.Contains(o.stderr, want) {
		t.Errorf("want exit code %d and %q; %s", code, want, o)
	}
	if !strings.HasPrefix(o.stderr, "fleet: ") || strings.Count(o.stderr, "\n") != 1 {
		t.Errorf("want one line on stderr: %s", o)
	}
	for _, secret := range secrets {
		if strings.Contains(o.stderr, secret) || strings.Contains(o.stdout, secret) {
			t.Errorf("it shows a secret: %s", o)
		}
	}
}

func TestBadInputIsRefusedClearly(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	takenPort := strconv.Itoa(taken.Addr().(*net.TCPAddr).Port)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := binary(); err != nil { // not on the clock below
		t.Fatal(err)
	}
	token := fakeToken(`{"iss":"https://id.example","sub":"42"}`)
	nobody := []string{"--server", "nats://127.0.0.1:1", "--token", token}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"unknown command":            {[]string{"pign"}, 2, `unknown command "pign"`},
		"unknown flag":               {[]string{"ping", "--al"}, 2, "unknown flag: --al"},
		"bad flag value":             {[]string{"ping", "x", "--timeout", "soon"}, 2, "--timeout"},
		"zero timeout":               {[]string{"ping", "x", "--timeout", "0s"}, 2, "--timeout must be more than 0"},
		"unknown output":             {[]string{"ping", "x", "-o", "xml"}, 2, `--output is "text" or "json"`},
		"no device":                  {[]string{"ping"}, 2, "say which devices"},
		"device and all":             {[]string{"ping", "x", "--all"}, 2, "say which devices"},
		"device id with a dot":       {[]string{"ping", "a.b"}, 2, `device id "a.b"`},
		"device id with a wildcard":  {[]string{"ping", "*"}, 2, `device id "*"`},
		"device id in capitals":      {[]string{"devices", "VM"}, 2, `device id "VM"`},
		"device id too long":         {[]string{"audit", "--device", strings.Repeat("a", 64)}, 2, "has 64 bytes"},
		"device id of label":         {[]string{"label", "a b", "k=v"}, 2, `device id "a b"`},
		"label without a value":      {[]string{"label", "a", "k"}, 2, `label "k"`},
		"bad selector":               {[]string{"ping", "-l", "k"}, 2, "say k=v"},
		"arguments of version":       {[]string{"version", "x"}, 2, `"x"`},
		"no context":                 {[]string{"ping", "x"}, 2, "run fleet up in another terminal"},
		"server without credentials": {[]string{"ping", "x", "--server", "nats://127.0.0.1:1"}, 2, "no credentials for nats://127.0.0.1:1"},
		"not a token":                {[]string{"ping", "x", "--server", "nats://127.0.0.1:1", "--token", "hunter2-hunter2"}, 2, "not an OIDC token"},
		"token file is missing":      {[]string{"ping", "x", "--server", "nats://127.0.0.1:1", "--token-file", file + "-none"}, 2, "file-none"},
		"user without password":      {[]string{"ping", "x", "--server", "nats://127.0.0.1:1", "--user", "ops"}, 2, "FLEET_PASSWORD"},
		"plaintext elsewhere":        {[]string{"ping", "x", "--server", "nats://192.0.2.1:4222", "--token", token}, 2, "plaintext"},
		"not a URL":                  {[]string{"ping", "x", "--server", "::", "--token", token}, 2, "server address"},
		"password in the URL":        {[]string{"ping", "x", "--server", "nats://u:hunter2-hunter2@127.0.0.1:1", "--token", token}, 2, "user or password"},
		"missing CA file":            {append([]string{"ping", "x", "--ca", file + "-none"}, nobody...), 2, "file-none"},
		"broker is down":             {append([]string{"ping", "x"}, nobody...), 1, "127.0.0.1:1"},
		"broker is down, devices":    {append([]string{"devices"}, nobody...), 1, "127.0.0.1:1"},
		"broker is down, provision":  {append([]string{"provision"}, nobody...), 1, "127.0.0.1:1"},
		"broker says nothing":        {[]string{"ping", "x", "--timeout", "200ms", "--server", "nats://127.0.0.1:" + takenPort, "--token", token}, 1, "127.0.0.1:" + takenPort},
		"port in use":                {[]string{"up", "--port", takenPort}, 1, "127.0.0.1:" + takenPort},
		"port out of range":          {[]string{"up", "--port", "70000"}, 2, "--port"},
		"data dir below a file":      {[]string{"up", "--port", "0", "--data-dir", file + "/x"}, 1, "data directory"},
		"data dir not writable":      {[]string{"up", "--port", "0", "--data-dir", "/proc/fleet"}, 1, "choose one that this user can write"},
		"no devices":                 {[]string{"up", "--devices", "0"}, 2, "--devices"},
		"unknown auth":               {[]string{"up", "--auth", "kerberos"}, 2, "callout and userpass"},
		"nonsense runtime":           {[]string{"up", "--runtime", "maybe"}, 2, "container engine"},
		"token lifetime too short":   {[]string{"up", "--token-lifetime", "1s"}, 2, "--token-lifetime"},
		"an empty data directory":    {[]string{"up", "--data-dir", ""}, 2, "--data-dir is empty"},
		"a number that is none":      {[]string{"up", "--devices", "many"}, 2, `invalid argument "many" for "--devices" flag: invalid syntax; see fleet up --help`},
		"a duration without a unit":  {[]string{"ping", "x", "--timeout", "5"}, 2, "a duration has a unit, as in 5s"},
		"an argument of audit":       {[]string{"audit", "x"}, 2, "--device"},
		"two devices":                {[]string{"devices", "a", "b"}, 2, "say one"},
		"no label":                   {[]string{"label", "a"}, 2, "at least one label"},
		"listen without render":      {[]string{"provision", "--listen", "127.0.0.1:1"}, 2, "--listen goes with --render-config"},
		"an empty render":            {[]string{"provision", "--render-config", ""}, 2, "--render-config goes with"},
		"unknown cluster command":    {[]string{"cluster", "stauts"}, 2, "stauts"},
		"cluster network":            {[]string{"cluster", "status", "--network", "x"}, 2, "--network"},
		"cluster is not up":          {[]string{"cluster", "kubeconfig", "--dir", file + "-none"}, 1, "fleet cluster up"},
		"kubectl without a cluster":  {[]string{"cluster", "kubectl", "--dir", file + "-none", "--", "get", "pods"}, 1, "fleet cluster up"},
		"flags of kubectl":           {[]string{"cluster", "kubectl", "get", "pods", "-A"}, 2, "after --"},
		"load of nothing":            {[]string{"cluster", "load"}, 2, "at least 1 arg"},
		"replicas":                   {[]string{"provision", "--replicas", "0"}, 2, "--replicas"},
		"render without keys":        {[]string{"provision", "--render-config", "-"}, 2, "fleet-callout keygen"},
		"render over a file":         {[]string{"provision", "--auth", "userpass", "--render-config", file}, 2, "is there already"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			begin := time.Now()
			o := h.fleet(c.args...)
			clearError(t, o, c.code, c.want, token, "hunter2-hunter2")
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("that took %v", d)
			}
			if left := h.leftovers(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if o := h.fleet(append([]string{"-o", "json"}, c.args...)...); name != "unknown output" {
				var line result
				if err := json.Unmarshal([]byte(o.stdout), &line); err != nil || line.Outcome.ExitCode() != c.code || line.Message == "" {
					t.Errorf("as JSON: %s", o)
				}
			}
		})
	}
}

func TestBadContextFileIsRefusedClearly(t *testing.T) {
	h := newHome(t)
	if err := os.MkdirAll(filepath.Dir(h.contextFile()), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.contextFile(), []byte("server = 'nats://127.0.0.1:1'\ntokn = 'hunter2-hunter2'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	clearError(t, h.fleet("ping", "x"), 2, `line 2: unknown key "tokn"`, "hunter2-hunter2")
	if err := os.Chmod(h.contextFile(), 0o644); err != nil {
		t.Fatal(err)
	}
	clearError(t, h.fleet("ping", "x"), 2, "chmod 600", "hunter2-hunter2")
}

// TestTokensThatAreNoGoodAreDenied uses the real program against a fleet in this
// process, whose issuer can make wrong tokens.
func TestTokensThatAreNoGoodAreDenied(t *testing.T) {
	s, err := stack.Start(t.Context(), stack.Options{Devices: 1, Port: stack.AnyPort})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	mint := func(o issuer.MintOptions) string {
		token, err := s.Issuer().Mint("admin", o)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	h := newHome(t)
	for name, token := range map[string]string{
		"expired":        mint(issuer.MintOptions{Lifetime: -time.Hour}),
		"wrongly signed": mint(issuer.MintOptions{OtherKey: true}),
		"other audience": mint(issuer.MintOptions{Audience: []string{"somebody"}}),
		"without roles":  mint(issuer.MintOptions{Roles: []string{}}),
	} {
		t.Run(name, func(t *testing.T) {
			tokenFile := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			o := h.fleet("ping", "vm-device-00", "--server", s.NATSURL(), "--token-file", tokenFile)
			clearError(t, o, 5, "refused", token)
			o = h.fleet("ping", "vm-device-00", "-o", "json", "--server", s.NATSURL(), "--token", token)
			if o.code != 5 || !strings.HasPrefix(o.stdout, `{"device_id":"vm-device-00","outcome":"denied","message":"`) {
				t.Errorf("as JSON: %s", o)
			}
		})
	}
	raw, err := os.ReadFile(h.commandLog())
	if err != nil || strings.Count(string(raw), `"outcome":"denied"`) != 8 || strings.Contains(string(raw), "eyJ") {
		t.Errorf("command log: %s, %v", raw, err)
	}

	// A role that may not: the broker lets it in, and refuses the command.
	auditor, err := s.NewIdentity(time.Hour, access.RoleAuditor)
	if err != nil {
		t.Fatal(err)
	}
	viewer, err := s.NewIdentity(time.Hour, access.RoleViewer)
	if err != nil {
		t.Fatal(err)
	}
	deployer, err := s.NewIdentity(time.Hour, access.RoleDeployer)
	if err != nil {
		t.Fatal(err)
	}
	ops, err := s.NewIdentity(time.Hour, access.RoleOps)
	if err != nil {
		t.Fatal(err)
	}
	as := func(id stack.Identity, args ...string) outputOf {
		h := newHome(t)
		h.env = append(h.env, "FLEET_SERVER="+s.NATSURL(), "FLEET_TOKEN="+id.Token)
		return h.fleet(args...)
	}
	clearError(t, as(auditor, "ping", "vm-device-00"), 5, "denied", auditor.Token)
	clearError(t, as(viewer, "audit"), 5, "denied", viewer.Token)
	clearError(t, as(viewer, "label", "vm-device-00", "a=b"), 5, "denied", viewer.Token)
	clearError(t, as(viewer, "provision"), 5, "denied", viewer.Token)
	clearError(t, as(deployer, "provision"), 5, "denied", deployer.Token)
	if o := as(viewer, "ping", "vm-device-00"); o.code != 0 {
		t.Errorf("a viewer's ping: %s", o)
	}
	doc := h.file("empty.json", emptyDesired)
	if o := as(deployer, "desired", "put", "vm-device-00", "-f", doc); o.code != 0 || !strings.HasPrefix(o.stdout, "vm-device-00  revision ") {
		t.Errorf("a deployer's desired put: %s", o)
	}
	if o := as(deployer, "desired", "get", "vm-device-00"); o.code != 0 || o.stdout != emptyDesired+"\n" {
		t.Errorf("a deployer's desired get: %s", o)
	}
	for _, id := range []stack.Identity{viewer, ops} {
		clearError(t, as(id, "desired", "put", "vm-device-00", "-f", doc), 5, "denied", id.Token)
		clearError(t, as(id, "desired", "delete", "vm-device-00"), 5, "denied", id.Token)
	}
	if o := as(deployer, "label", "vm-device-00", "a=b"); o.code != 0 {
		t.Errorf("a deployer's label: %s", o)
	}
}

func TestRenderedConfigurationIsWritten(t *testing.T) {
	h := newHome(t)
	path := filepath.Join(h.dir, "nats.conf")
	o := h.fleet("provision", "--auth", "userpass", "--render-config", path, "--listen", "0.0.0.0:4223", "--store-dir", "/data")
	info, err := os.Stat(path)
	if o.code != 0 || err != nil || info.Mode().Perm() != 0o600 || o.stdout != "" {
		t.Errorf("%v, %v; %s", info, err, o)
	}
	raw, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(raw), `"0.0.0.0:4223"`) || !strings.Contains(string(raw), "/data") {
		t.Errorf("%s, %v", raw, err)
	}
}
