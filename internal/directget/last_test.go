package directget_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/directget"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

func TestLastReadsWhatIsStored(t *testing.T) {
	srv, err := broker.Start(t.Context(), broker.Config{
		Port: broker.AnyPort, StoreDir: t.TempDir(), UserPass: &broker.UserPass{Ops: "o", Data: "d", Device: "v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	nc, err := natsconn.Connect(t.Context(), natsconn.Config{
		URLs: []string{srv.ClientURL()}, InboxPrefix: command.InboxPrefix(command.UID(broker.UserData)),
		Credentials: credentials.Static(credentials.Credential{User: broker.UserData, Password: "d"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	stream, subject := access.KVStream(command.DeviceLabelsBucket), command.DeviceLabelsSubject("d1")
	if _, _, err := directget.Last(t.Context(), nc, stream, subject); !errors.Is(err, directget.ErrNoStream) || !strings.Contains(err.Error(), stream) {
		t.Errorf("before the stream was made: %v", err)
	}
	if _, err := broker.Provision(t.Context(), nc, broker.ProvisionOptions{}); err != nil {
		t.Fatal(err)
	}
	if m, found, err := directget.Last(t.Context(), nc, stream, subject); found || err != nil || m.Seq != 0 {
		t.Errorf("nothing is stored: %+v, %v, %v", m, found, err)
	}
	if _, err := nc.Request(subject, []byte("x"), natsconn.ConnectTimeout); err != nil {
		t.Fatal(err)
	}
	m, found, err := directget.Last(t.Context(), nc, stream, subject)
	if !found || err != nil || m.Seq != 1 || m.Subject != subject || string(m.Data) != "x" || m.At.IsZero() || m.Deleted {
		t.Errorf("got %+v, %v, %v", m, found, err)
	}
}
