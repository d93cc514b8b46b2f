// Command coredns is CoreDNS with the few plugins a test cluster's DNS needs: cache, errors, health,
// kubernetes, loadbalance and ready. test/cluster builds it and puts it, alone, into the image its
// cluster's kube-dns runs. It is a Go module of its own, so that its client-go is nobody else's.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	// The order in which plugins see a query, as in CoreDNS's own plugin.cfg.
	dnsserver.Directives = []string{"errors", "health", "ready", "cache", "loadbalance", "kubernetes"}
	coremain.Run()
}
