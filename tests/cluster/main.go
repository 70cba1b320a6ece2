// Command cluster is a whole Kubernetes control plane (and a kubelet) in one
// binary, built from the published modules, so that mooring's tests run against
// the real thing. `cluster COMPONENT ARGS...` is that component; `cluster up`
// runs a control plane of them for as long as its standard input stays open.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	if name := filepath.Base(os.Args[0]); isComponent(name) {
		runComponent(name, os.Args)
		return
	}
	if len(os.Args) < 2 {
		usage()
	}
	switch name := os.Args[1]; {
	case isComponent(name):
		runComponent(name, os.Args[1:])
	case name == "up":
		os.Exit(up(os.Args[2:]))
	case name == "supervise":
		os.Exit(supervise(os.Args[2:]))
	default:
		usage()
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: cluster up --dir DIR [--audit] [--listen ADDRESS:PORT] | etcd | kube-apiserver | "+
		"kube-controller-manager | kube-scheduler | kubelet | kubectl  [ARGS...]")
	os.Exit(2)
}

func isComponent(name string) bool {
	switch name {
	case "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl":
		return true
	}
	return false
}

// runComponent becomes the named component; argv[0] is its name.
func runComponent(name string, argv []string) {
	os.Args = argv
	var command *cobra.Command
	switch name {
	case "etcd":
		etcdmain.Main(argv)
		return
	case "kube-apiserver":
		command = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		command = controllermanager.NewControllerManagerCommand()
	case "kube-scheduler":
		command = scheduler.NewSchedulerCommand()
	case "kubelet":
		command = kubelet.NewKubeletCommand(context.Background()) // it sets up signals itself
	case "kubectl":
		command = kubectl.NewDefaultKubectlCommand()
	}
	os.Exit(cli.Run(command))
}
