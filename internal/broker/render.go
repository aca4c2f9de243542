package broker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// The nats-server configuration language is a superset of JSON, so the
// configuration is marshalled from these types rather than pasted together.
type (
	serverConfig struct {
		ServerName     string                   `json:"server_name"`
		Listen         string                   `json:"listen"`
		HTTP           string                   `json:"http,omitempty"`
		JetStream      jetStreamConfig          `json:"jetstream"`
		SystemAccount  string                   `json:"system_account"`
		MaxControlLine int                      `json:"max_control_line"` // bytes
		PingInterval   string                   `json:"ping_interval"`
		PingMax        int                      `json:"ping_max"`
		TLS            *tlsConfig               `json:"tls,omitempty"`
		Cluster        *clusterConfig           `json:"cluster,omitempty"`
		Authorization  *authConfig              `json:"authorization,omitempty"`
		Accounts       map[string]accountConfig `json:"accounts"`
	}
	jetStreamConfig struct {
		StoreDir string `json:"store_dir"`
	}
	tlsConfig struct {
		CertFile string `json:"cert_file"`
		KeyFile  string `json:"key_file"`
		CAFile   string `json:"ca_file,omitempty"`
		Verify   bool   `json:"verify,omitempty"`
		Timeout  int    `json:"timeout"` // seconds
	}
	clusterConfig struct {
		Name   string   `json:"name"`
		Listen string   `json:"listen"`
		Routes []string `json:"routes,omitempty"`

		Authorization *userConfig `json:"authorization,omitempty"`
		TLS           *tlsConfig  `json:"tls,omitempty"`
	}
	authConfig struct {
		Callout calloutConfig `json:"auth_callout"`
	}
	calloutConfig struct {
		Issuer    string   `json:"issuer"`
		Account   string   `json:"account"`
		AuthUsers []string `json:"auth_users"`
		XKey      string   `json:"xkey,omitempty"`
	}
	accountConfig struct {
		JetStream string         `json:"jetstream,omitempty"`
		Users     []userConfig   `json:"users,omitempty"`
		Exports   []exportConfig `json:"exports,omitempty"`
		Imports   []importConfig `json:"imports,omitempty"`
	}
	userConfig struct {
		User        string             `json:"user"`
		Password    string             `json:"password"`
		Permissions *permissionsConfig `json:"permissions,omitempty"`
	}
	permissionsConfig struct {
		Publish        []string         `json:"publish"`
		Subscribe      []string         `json:"subscribe"`
		AllowResponses *responsesConfig `json:"allow_responses,omitempty"`
	}
	responsesConfig struct {
		Max     int    `json:"max"`
		Expires string `json:"expires"`
	}
	exportConfig struct {
		Service           string   `json:"service,omitempty"`
		Stream            string   `json:"stream,omitempty"`
		ResponseType      string   `json:"response_type,omitempty"`
		ResponseThreshold string   `json:"response_threshold,omitempty"`
		Accounts          []string `json:"accounts"`
	}
	importConfig struct {
		Service *remoteSubject `json:"service,omitempty"`
		Stream  *remoteSubject `json:"stream,omitempty"`
		To      string         `json:"to,omitempty"`
		Share   bool           `json:"share,omitempty"`
	}
	remoteSubject struct {
		Account string `json:"account"`
		Subject string `json:"subject"`
	}
)

// Subjects that cross accounts.
var (
	// reports are what devices publish for the streams.
	reports = []string{command.StatusSubject("*"), command.HeartbeatSubject("*"), command.AuditSubjects("*")}

	// intake is what devices publish for the streams in all. Live readers have no
	// use for the results of jobs: they read those of one job.
	intake = append(slices.Clone(reports), command.JobSubjects("*"))

	// deviceReads are what devices read of the streams: each its own subjects, by
	// its permissions.
	deviceReads = []string{
		access.DirectGetLast(access.KVStream(command.DesiredStateBucket), command.DesiredStateSubject("*")),
		access.DirectGetLast(access.StreamAudit, command.AuditSubjects("*")),
	}

	opsReads = []string{
		access.DirectGet(access.StreamStatus), access.DirectGet(access.StreamHeartbeat),
		access.DirectGet(access.StreamAudit), access.DirectGet(access.StreamJobs), access.DirectGet(access.KVStream(command.DeviceLabelsBucket)),
	}

	peopleReads = append(slices.Clone(opsReads), access.DirectGet(access.KVStream(command.DesiredStateBucket)))
)

// desiredAgain is where the bucket of desired states publishes again what was
// put, in DATA; devices see it under the subject of the bucket.
const desiredAgain = "fleet.desired"

// Render gives the nats-server configuration as text. It holds the passwords in
// Config: write it with mode 0600.
func (c Config) Render() (string, error) {
	c.setDefaults()
	if err := c.validate(); err != nil {
		return "", fmt.Errorf("broker configuration: %w", err)
	}
	cfg := serverConfig{
		ServerName:    c.ServerName,
		Listen:        net.JoinHostPort(c.Host, strconv.Itoa(c.Port)),
		JetStream:     jetStreamConfig{StoreDir: c.StoreDir},
		SystemAccount: c.Accounts.System,
		// A CONNECT line carries the token; the default of 4,096 bytes refuses long ones.
		MaxControlLine: 16 << 10,
		// A device whose power was cut is noticed after 45 to 60 s; the defaults take
		// 6 to 8 minutes.
		PingInterval: "15s",
		PingMax:      2,
		Accounts:     c.accounts(),
	}
	if c.HTTPPort != 0 {
		cfg.HTTP = net.JoinHostPort(c.Host, strconv.Itoa(c.HTTPPort))
	}
	cfg.TLS = c.TLS.render()
	if c.Cluster != nil {
		cfg.Cluster = c.Cluster.render(c.Host)
	}
	if c.Callout != nil {
		// Users named here sign in with their password; everyone else goes through
		// the callout.
		users := []string{UserCallout}
		if c.SystemPassword != "" {
			users = append(users, UserSystem)
		}
		cfg.Authorization = &authConfig{Callout: calloutConfig{
			Issuer: c.Callout.Issuer, Account: c.Accounts.Auth, AuthUsers: users, XKey: c.Callout.XKey,
		}}
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // ">" is a wildcard here, and stays readable
	enc.SetIndent("", "  ")
	if err := enc.Encode(cfg); err != nil {
		return "", fmt.Errorf("broker configuration: %w", err)
	}
	return out.String(), nil
}

func (t *TLS) render() *tlsConfig {
	if t == nil {
		return nil
	}
	return &tlsConfig{CertFile: t.CertFile, KeyFile: t.KeyFile, CAFile: t.CAFile, Verify: t.VerifyClients, Timeout: 5}
}

func (c *Cluster) render(host string) *clusterConfig {
	if c.Host != "" {
		host = c.Host
	}
	out := &clusterConfig{Name: c.Name, Listen: net.JoinHostPort(host, strconv.Itoa(c.Port)), Routes: c.Routes, TLS: c.TLS.render()}
	if c.Password == "" {
		return out
	}
	out.Authorization = &userConfig{User: routeUser, Password: c.Password}
	out.Routes = nil
	for _, route := range c.Routes {
		u, err := url.Parse(route)
		if err != nil {
			panic(err) // validate has parsed it
		}
		u.User = url.UserPassword(routeUser, c.Password)
		out.Routes = append(out.Routes, u.String())
	}
	return out
}

// intakeThreshold is how long the broker remembers where an answer to a device
// goes. It answers reads in milliseconds, and reports not at all, so that a
// device that puts reply subjects on its reports is forgotten soon.
const intakeThreshold = "5s"

// accounts is the tenant: who exports what to whom. docs/architecture.md draws
// it.
func (c Config) accounts() map[string]accountConfig {
	names := c.Accounts
	ops, data, deploy, fleet := accountConfig{}, accountConfig{JetStream: "enabled"}, accountConfig{}, accountConfig{}

	// Commands, with the caller's identity put on each by the server (share). One
	// reply each: with a streaming response type every ping would leave state in
	// the server until both ends disconnect.
	fleet.Exports = append(fleet.Exports, exportConfig{
		Service: "device-commands.>", ResponseThreshold: access.ReplyLifetime.String(), Accounts: []string{names.Ops},
	})
	ops.Imports = append(ops.Imports, importConfig{Service: &remoteSubject{names.Fleet, "device-commands.>"}, Share: true})

	// Session output, to people only, and what devices report, to live readers.
	for _, subject := range append([]string{"fleet.session.>"}, reports...) {
		fleet.Exports = append(fleet.Exports, exportConfig{Stream: subject, Accounts: []string{names.Ops}})
		ops.Imports = append(ops.Imports, importConfig{Stream: &remoteSubject{names.Fleet, subject}})
	}

	// Whatever goes from FLEET to DATA, reports and reads alike, goes through this
	// one service export. A device chooses the subject to which the answer of a
	// read is delivered; if that could be another device's report subject, the
	// device would have its own bytes stored as the other's. The server never lets
	// the answer of a service pass through the export from which it came (its
	// check for cycles), so with a single export no answer becomes a report. A
	// stream export for reports would not do: across a cluster's routes the server
	// forgets that a message was an answer, and stores it.
	// What FLEET may use of the export is what its imports name.
	data.Exports = append(data.Exports, exportConfig{
		Service: ">", ResponseThreshold: intakeThreshold, Accounts: []string{names.Fleet, names.Deploy},
	})
	for _, subject := range append(slices.Clone(intake), deviceReads...) {
		fleet.Imports = append(fleet.Imports, importConfig{Service: &remoteSubject{names.Data, subject}})
	}

	// To devices: their desired state (a hint; the truth is read) and their own
	// heartbeats, both as the streams publish them again, without the writer's
	// reply subject.
	for _, again := range []struct{ from, to string }{
		{desiredAgain + ".*", command.DesiredStateSubject("$1")},
		{command.SeenSubject("*"), ""},
	} {
		data.Exports = append(data.Exports, exportConfig{Stream: again.from, Accounts: []string{names.Fleet}})
		fleet.Imports = append(fleet.Imports, importConfig{Stream: &remoteSubject{names.Data, again.from}, To: again.to})
	}

	// Reads of the streams by people: direct gets, and nothing that writes. A batch
	// has many answers, hence the response type.
	for _, subject := range peopleReads {
		data.Exports = append(data.Exports, exportConfig{Service: subject, ResponseType: "stream", Accounts: []string{names.Ops, names.Deploy}})
	}
	for _, subject := range opsReads {
		ops.Imports = append(ops.Imports, importConfig{Service: &remoteSubject{names.Data, subject}})
	}
	for _, subject := range append(access.DeployWrites(), access.DeployReads()...) {
		deploy.Imports = append(deploy.Imports, importConfig{Service: &remoteSubject{names.Data, subject}})
	}

	auth, system := accountConfig{}, accountConfig{}
	// The end of a device's connection, for controllers. Nobody but the server
	// publishes in the system account, and in DATA nobody may publish the subject.
	gone := "$SYS.ACCOUNT." + names.Fleet + ".DISCONNECT"
	system.Exports = append(system.Exports, exportConfig{Stream: gone, Accounts: []string{names.Data}})
	data.Imports = append(data.Imports, importConfig{Stream: &remoteSubject{names.System, gone}, To: access.Disconnected})

	if c.SystemPassword != "" {
		system.Users = []userConfig{{User: UserSystem, Password: c.SystemPassword}}
	}
	if c.Callout != nil {
		auth.Users = []userConfig{{User: UserCallout, Password: c.Callout.Password, Permissions: &permissionsConfig{
			Publish:        []string{access.UserInfo},
			Subscribe:      []string{"$SYS.REQ.USER.AUTH", command.InboxPrefix(UserCallout) + ".>"},
			AllowResponses: &responsesConfig{Max: 1, Expires: "5s"},
		}}}
	}
	if c.UserPass != nil {
		// Static users hold every role of their account; roles need the callout.
		ops.Users = []userConfig{{User: UserOps, Password: c.UserPass.Ops, Permissions: person(access.Ops, UserOps)}}
		data.Users = []userConfig{{User: UserData, Password: c.UserPass.Data, Permissions: person(access.Data, UserData)}}
		fleet.Users = []userConfig{{User: UserDevice, Password: c.UserPass.Device, Permissions: permissions(access.ForDevice(access.AnyDevice))}}
	}
	return map[string]accountConfig{
		names.Ops: ops, names.Data: data, names.Deploy: deploy, names.Fleet: fleet, names.Auth: auth, names.System: system,
	}
}

func person(account access.Account, user string) *permissionsConfig {
	p, err := access.ForPerson(account, command.UID(user), []access.Role{access.RoleAdmin})
	if err != nil {
		panic(err) // fleet-admin enters both accounts
	}
	return permissions(p)
}

func permissions(p access.Permissions) *permissionsConfig {
	cfg := &permissionsConfig{Publish: p.Publish, Subscribe: p.Subscribe}
	if p.Responses > 0 {
		cfg.AllowResponses = &responsesConfig{Max: p.Responses, Expires: access.ReplyLifetime.String()}
	}
	return cfg
}
