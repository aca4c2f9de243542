//go:build linux

// Command kube is a whole Kubernetes node in one binary: the control plane, the
// node's agents and cluster DNS, linked from the published modules. The
// local cluster provider starts one process per component:
//
//	kube kube-apiserver --etcd-servers=…
//	kube kubelet --config=…
//
// One binary instead of seven shares most of its code, so that building it costs
// one link and its pages are in memory once.
//
// With KUBE_AWAIT in the environment it first waits for what is named there.
//
// It is a Go module of its own because k8s.io/kubernetes can only be required
// together with a replace for each of its staging modules, and replaces would
// follow everyone who requires the main module's packages.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sort"
	"strings"
	"time"
	_ "time/tzdata" // time zones of CronJobs, on machines without a zone database

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics of each component
	_ "k8s.io/component-base/metrics/prometheus/version"  // version metric of each component
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubecontrollermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubescheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components maps a name to the function that becomes that component and never
// returns. Each reads os.Args, whose first element is the component's name.
var components = map[string]func(){
	"etcd":                    func() { etcdmain.Main(os.Args) },
	"kube-apiserver":          func() { os.Exit(cli.Run(kubeapiserver.NewAPIServerCommand())) },
	"kube-controller-manager": func() { os.Exit(cli.Run(kubecontrollermanager.NewControllerManagerCommand())) },
	"kube-scheduler":          func() { os.Exit(cli.Run(kubescheduler.NewSchedulerCommand())) },
	"kubelet":                 func() { os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background()))) },
	"kube-proxy":              func() { os.Exit(cli.Run(kubeproxy.NewProxyCommand())) },
	"coredns":                 runCoreDNS,
}

func main() {
	// Starting allocates a lot that stays; GOGC in the environment may put the
	// collecting off, but not for good, since memory is what a node has least of.
	time.AfterFunc(steadyAfter, func() { debug.SetGCPercent(100) })
	await(os.Getenv(awaitVariable))

	if len(os.Args) > 1 {
		if run, ok := components[os.Args[1]]; ok {
			os.Args = os.Args[1:]
			run()
			return
		}
	}
	names := make([]string, 0, len(components))
	for name := range components {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Fprintf(os.Stderr, "usage: kube COMPONENT [FLAG...]\ncomponents: %s\n", strings.Join(names, ", "))
	os.Exit(2)
}

const (
	// steadyAfter is when a component is taken to have started.
	steadyAfter = 20 * time.Second

	// awaitVariable names what a component waits for before it goes to work, with
	// commas between: "tcp 10.0.0.1:2379" or "unix /run/x.sock" for connections to be
	// accepted, "tls 10.0.0.1:6443" for a handshake, "https 10.0.0.1:6443/healthz" for
	// the answer 200. It is waited for here because half of a start is spent before
	// main, and that half needs nothing: components can be started together, and none
	// of them finds the next one missing and waits for a whole back-off.
	awaitVariable = "KUBE_AWAIT"

	awaitEvery = 5 * time.Millisecond
)

// await returns when everything in list is there.
func await(list string) {
	// What is looked for is whether somebody is there; who it is, the component
	// itself makes sure of.
	config := &tls.Config{InsecureSkipVerify: true}
	dialer := &net.Dialer{Timeout: time.Second}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: config}}
	defer client.CloseIdleConnections()
	for _, item := range strings.Split(list, ",") {
		kind, address, ok := strings.Cut(item, " ")
		if !ok {
			continue
		}
		for !there(kind, address, dialer, config, client) {
			time.Sleep(awaitEvery)
		}
	}
}

func there(kind, address string, dialer *net.Dialer, config *tls.Config, client *http.Client) bool {
	switch kind {
	case "https":
		response, err := client.Get("https://" + address)
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	case "tls":
		conn, err := tls.DialWithDialer(dialer, "tcp", address, config)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	default:
		conn, err := dialer.Dial(kind, address)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	}
}
