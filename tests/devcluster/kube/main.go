// Package main is a whole Kubernetes control plane and node in one static binary.
//
// Docker is not available everywhere these tests run, and a release download is not either; the Go
// proxy is. One module that dispatches on its first argument builds the shared packages once, which
// takes a third of the time and of the disk of six separate programs.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	if len(os.Args) < 2 {
		fail("no component named")
	}
	component := os.Args[1]
	// The components read os.Args themselves: each must see itself as the program.
	os.Args = append([]string{component}, os.Args[2:]...)

	var command *cobra.Command
	switch component {
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case "kube-apiserver":
		command = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		command = controllers.NewControllerManagerCommand()
	case "kube-scheduler":
		command = scheduler.NewSchedulerCommand()
	case "kube-proxy":
		command = proxy.NewProxyCommand()
	case "kubelet":
		command = kubelet.NewKubeletCommand(context.Background())
	default:
		fail("unknown component " + component)
	}
	os.Exit(cli.Run(command))
}

func fail(reason string) {
	fmt.Fprintln(os.Stderr, reason+"; expected etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet or kube-proxy")
	os.Exit(2)
}
