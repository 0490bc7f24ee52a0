// flanneld, from Flannel's own packages: its Kubernetes subnet manager and its backends vxlan and host-gw. Flannel's own
// program links backends of cloud providers too, whose modules the proxy does not have.
//
//	flanneld NAME KUBECONFIG NET-CONF INTERFACE
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw" // registers itself
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"  // registers itself
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
)

// Where the plugin `flannel` reads what this node was given.
const subnetFile = "/run/flannel/subnet.env"

func main() {
	if len(os.Args) != 5 {
		log.Fatal("flanneld NODE KUBECONFIG NET-CONF INTERFACE")
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		log.Fatalf("flanneld: %v", err)
	}
}

func run(node, kubeconfig, netConf, iface string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := os.Setenv("NODE_NAME", node); err != nil { // how its subnet manager learns it
		return err
	}
	manager, err := kube.NewSubnetManager(ctx, "", kubeconfig, "flannel.alpha.coreos.com", netConf, false)
	if err != nil {
		return err
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	external, err := ipmatch.LookupExtIface(iface, "", "", stack, ipmatch.PublicIPOpts{})
	if err != nil {
		return err
	}
	chosen, err := backend.NewManager(ctx, manager, external).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var tasks sync.WaitGroup
	network, err := chosen.RegisterNetwork(ctx, &tasks, config)
	if err != nil {
		return err
	}
	lease := network.Lease()
	// "It masquerades", as flanneld is usually told to: then the plugin does not, and pods' addresses stay as they are. No way
	// leads out of the test bed, so that there is nothing to masquerade.
	if err := manager.HandleSubnetFile(subnetFile, config, true, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return err
	}
	fmt.Printf("%s has %s by %s, MTU %d\n", node, lease.Subnet, config.BackendType, network.MTU())
	tasks.Add(1)
	go func() {
		defer tasks.Done()
		network.Run(ctx)
	}()
	err = manager.CompleteLease(ctx, lease, &tasks)
	tasks.Wait()
	return err
}
