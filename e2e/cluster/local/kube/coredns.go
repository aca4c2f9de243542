//go:build linux

package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/coredns/caddy"
	_ "github.com/coredns/coredns/core/dnsserver" // the DNS server type
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

// runCoreDNS serves the Corefile named by -conf until it is signalled. CoreDNS's
// own main is not used: it links every plugin, cloud SDKs included.
func runCoreDNS() {
	flags := flag.NewFlagSet("coredns", flag.ExitOnError)
	conf := flags.String("conf", "Corefile", "path of the Corefile")
	_ = flags.Parse(os.Args[1:]) // ExitOnError

	text, err := os.ReadFile(*conf)
	if err != nil {
		fmt.Fprintln(os.Stderr, "coredns: read configuration:", err)
		os.Exit(1)
	}
	caddy.AppName, caddy.Quiet = "CoreDNS", true
	caddy.TrapSignals()
	instance, err := caddy.Start(caddy.CaddyfileInput{Filepath: *conf, Contents: text, ServerTypeName: "dns"})
	if err != nil {
		fmt.Fprintln(os.Stderr, "coredns: start:", err)
		os.Exit(1)
	}
	instance.Wait()
}
