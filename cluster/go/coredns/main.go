// Coredns with the plugins that the cluster's Corefile uses, and no others: the full one takes minutes more to build
// for cloud providers' libraries that nothing here calls.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/template"
)

func init() {
	// The order is that in which a query passes the plugins.
	dnsserver.Directives = []string{"reload", "health", "ready", "errors", "template", "kubernetes"}
}

func main() {
	coremain.Run()
}
