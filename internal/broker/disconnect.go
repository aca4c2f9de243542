package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// Disconnect says that a connection of a device has ended.
//
// It is a hint, and never the reason to take a device for offline while its
// heartbeats arrive: an agent that renews its credential has two connections for a
// while, and a device can, for an instant and by a connection that the broker then
// refuses, call itself by another name; see [ReadDisconnect].
type Disconnect struct {
	Device string
	At     time.Time // by the broker's clock
	Reason string    // the server's, for example "Client Closed" or "Stale Connection"
}

// maxEvent bounds a server's event; a real one has about 700 bytes, of which a
// client chooses a few names.
const maxEvent = 64 << 10

// The type of the server's event (nats-server, server/events.go).
const disconnectType = "io.nats.server.advisory.v1.client_disconnect"

// errNotADevice is what [ReadDisconnect] wraps for connections of other clients.
var errNotADevice = errors.New("the connection is not named as an agent's")

// ReadDisconnect reads a message of [access.Disconnected].
//
// The device is the one that the connection's name states, [command.ConnectionName]:
// the auth callout lets no device in under another's. What the callout has not seen
// does not count: a client that signs in again on an open connection changes its name
// before it is refused, and the event of that refusal is an error here.
// In userpass mode all devices share one user and the name is the client's own word.
func ReadDisconnect(data []byte) (Disconnect, error) {
	if len(data) > maxEvent {
		return Disconnect{}, fmt.Errorf("disconnect event: %d bytes, more than %d", len(data), maxEvent)
	}
	var event struct {
		Type   string    `json:"type"`
		Time   time.Time `json:"timestamp"`
		Reason string    `json:"reason"`
		Client struct {
			Name string `json:"name"`
			Kind string `json:"kind"`
		} `json:"client"`
	}
	if err := json.Unmarshal(data, &event); err != nil {
		return Disconnect{}, fmt.Errorf("disconnect event: %w", err)
	}
	if event.Type != disconnectType || event.Client.Kind != "Client" {
		return Disconnect{}, fmt.Errorf("disconnect event: type %.80q of a connection of kind %.80q", event.Type, event.Client.Kind)
	}
	// "Authentication Expired" is the end of a connection that was let in.
	if event.Reason == "Authentication Failure" || event.Reason == "Authentication Timeout" {
		return Disconnect{}, fmt.Errorf("disconnect event: %s: the connection's name was not checked", event.Reason)
	}
	device, ok := strings.CutPrefix(event.Client.Name, command.ConnectionName(""))
	if !ok || command.CheckDeviceID(device) != nil {
		return Disconnect{}, fmt.Errorf("disconnect event: %w", errNotADevice)
	}
	return Disconnect{Device: device, At: event.Time, Reason: event.Reason}, nil
}
