// Command hello is a web server small enough to make an image of by hand, where
// no registry can be reached:
//
//	CGO_ENABLED=0 go build -o /tmp/hello ./examples/hello
//	tar -C /tmp -c hello | podman import --change 'ENTRYPOINT ["/hello"]' - localhost/hello:1
//	fleet desired put vm-device-00 -f examples/hello-local.json
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "hello from %s\n", name) })
	// The first process of a container ends at SIGTERM only if it says so.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	srv := &http.Server{Addr: ":80", Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.ListenAndServe() }()
	select {
	case err := <-failed:
		log.Fatal(err)
	case <-stop:
		_ = srv.Close()
	}
}
