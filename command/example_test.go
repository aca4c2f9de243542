package command_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// A caller builds the subject and headers of a command.
func ExampleRequestHeader() {
	if err := command.CheckDeviceID("vm-device-00"); err != nil {
		fmt.Println(err)
		return
	}
	header := map[string][]string{} // or a nats.Header
	command.RequestHeader{
		RequestID: "01890a5d-ac96-774b-bcce-b302099a8057", // command.NewRequestID()
		Deadline:  time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
	}.Write(header)
	fmt.Println(command.Subject("vm-device-00", command.VerbPing))
	fmt.Println(header[command.HeaderDeadline][0])
	// Output:
	// device-commands.vm-device-00.ping
	// 2026-01-02T15:04:05.000000000Z
}

// A caller maps what it got to one outcome, and the outcome to an exit code.
func ExampleDecodeReply() {
	reply := []byte(`{"device_id":"vm-device-00","agent_version":"0.1.0","uptime_s":12}`)
	ping, err := command.DecodeReply[command.PingReply](nil, reply)
	fmt.Println(ping.UptimeS, err)

	header := map[string][]string{command.HeaderError: {"busy"}}
	_, err = command.DecodeReply[command.PingReply](header, []byte(`{"error":{"kind":"busy","message":"64 commands are running; try again"}}`))
	var failure *command.Error
	if errors.As(err, &failure) {
		fmt.Println(failure.Outcome, failure.Outcome.ExitCode(), failure.Message)
	}
	// Output:
	// 12 <nil>
	// busy 6 64 commands are running; try again
}

// A device reads a request, and answers with an error where it must.
func ExampleDecodeRequest() {
	_, err := command.DecodeRequest[command.ExecRequest](command.VerbExec, []byte(`{"argv":["ls"],"Host":true}`))
	var refusal *command.Error
	if errors.As(err, &refusal) {
		header := map[string][]string{}
		payload := command.EncodeError(header, refusal)
		fmt.Println(header[command.HeaderError][0], string(payload))
	}
	// Output:
	// bad_request {"error":{"kind":"bad_request","message":"payload of exec: unknown field \"Host\""}}
}

func ExampleParseSubject() {
	target, err := command.ParseSubject("device-commands.vm-device-00.ping")
	fmt.Println(target.Device, target.Verb, err)
	_, err = command.ParseSubject("device-commands.vm-device-00.>")
	fmt.Println(err != nil)
	// Output:
	// vm-device-00 ping <nil>
	// true
}
