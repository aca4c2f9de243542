package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

// connect signs in as the static user of the operators' account. The inbox
// prefix is the only one under which that user may receive replies; for a person
// with a token it is command.InboxPrefix(command.UID(command.UserName(issuer, subject))).
func connect(password string) (*nats.Conn, error) {
	return nats.Connect("nats://127.0.0.1:4222",
		nats.UserInfo("ops", password), nats.CustomInboxPrefix(command.InboxPrefix(command.UID("ops"))))
}

func ExampleClient_ExecAll() {
	ctx := context.Background()
	nc, err := connect(os.Getenv("FLEET_PASSWORD"))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	job, err := c.NewJob(ctx)
	if err != nil {
		log.Fatal(err)
	}
	o := client.ExecOptions{Container: "web", Argv: []string{"nginx", "-t"}, Job: job}
	f := client.FanOut{Window: 200, Abort: &client.Abort{Share: 0.05, Min: 20}}
	for r := range c.ExecAll(ctx, []string{"edge-01", "edge-02"}, o, f) {
		switch {
		case r.NotStarted():
			fmt.Println(r.Device, "was not asked") // ExecAll with the same job asks it later
		case r.Err != nil:
			fmt.Println(r.Device, r.Outcome())
		default:
			fmt.Println(r.Device, "exit code", r.ExitCode)
		}
	}
	// Later, and from anywhere: what the devices stored of it.
	for r, err := range c.JobResults(ctx, job.ID) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(r.DeviceID, r.Outcome)
	}
}

func ExampleClient_Ping() {
	nc, err := connect("secret")
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	reply, err := c.Ping(ctx, "vm-device-00")
	switch {
	case errors.Is(err, client.ErrUnknownDevice):
		fmt.Println("no such device")
	case errors.Is(err, client.ErrDeviceOffline):
		fmt.Println("not connected")
	case err != nil:
		log.Fatal(err)
	default:
		fmt.Println("agent", reply.AgentVersion, "up", time.Duration(reply.UptimeS)*time.Second)
	}
}

func ExampleClient_PingAll() {
	nc, err := connect("secret")
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	count := map[command.Outcome]int{}
	for r := range c.PingAll(context.Background(), []string{"vm-device-00", "vm-device-01"}, client.FanOut{}) {
		count[r.Outcome()]++
	}
	fmt.Println(count)
}

func ExampleCheckChain() {
	nc, err := connect("secret")
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	var entries []client.AuditEntry
	for e, err := range c.Audit(context.Background(), client.AuditFilter{Device: "vm-device-00"}) {
		if err != nil {
			log.Fatal(err)
		}
		entries = append(entries, e)
	}
	for _, gap := range client.CheckChain(entries) {
		fmt.Println(gap)
	}
}

func ExampleClient_Logs() {
	nc, err := connect("secret")
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	last := 20
	err = c.Logs(ctx, "vm-device-00", client.LogsOptions{
		Container: "web", Follow: true, Reopen: true, Tail: &last, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

func ExampleClient_Exec() {
	nc, err := connect("secret")
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	r, err := c.Exec(context.Background(), "vm-device-00", client.ExecOptions{
		Container: "web", Argv: []string{"tar", "x", "-C", "/srv"},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	switch {
	case errors.Is(err, client.ErrStartedNoResult):
		reply, err := c.Result(context.Background(), "vm-device-00", r.RequestID) // later
		fmt.Println(reply.Outcome, err)
	case err != nil:
		log.Fatal(err)
	default:
		os.Exit(r.ExitCode)
	}
}

func ExampleClient_Shell() {
	nc, err := connect("secret")
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	// The terminal at this end is the program's own affair: raw mode, its size.
	resize := make(chan command.Resize, 1)
	r, err := c.Shell(context.Background(), "vm-device-00", client.ShellOptions{
		Container: "web", Term: os.Getenv("TERM"), Size: command.Resize{Rows: 40, Cols: 120}, Resize: resize,
		Stdin: os.Stdin, Stdout: os.Stdout,
	})
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(r.ExitCode)
}
