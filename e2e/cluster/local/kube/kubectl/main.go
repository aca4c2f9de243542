//go:build linux

// Command kubectl is kubectl of the same version as the cluster, for machines that
// have none. It is no part of the other binary because what it does before main
// would slow the start of every component.
package main

import (
	"os"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // what people's kubeconfigs may name
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	logs.GlogSetter(cmd.GetLogVerbosity(os.Args)) //nolint:errcheck // kubectl's own main ignores it too
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}
