// Argocd is Argo CD's repository server, application controller, API server and settings commands in one program, with
// what they need beside them: a Redis that keeps everything in memory, and kustomize.
//
// It is upstream's own program less what no test here uses (single sign-on, plugins, notifications, sets of
// applications). Like that one it does the work of the name it is called by.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/alicebob/miniredis/v2"
	controller "github.com/argoproj/argo-cd/v3/cmd/argocd-application-controller/commands"
	askpass "github.com/argoproj/argo-cd/v3/cmd/argocd-git-ask-pass/commands"
	reposerver "github.com/argoproj/argo-cd/v3/cmd/argocd-repo-server/commands"
	server "github.com/argoproj/argo-cd/v3/cmd/argocd-server/commands"
	"github.com/argoproj/argo-cd/v3/cmd/argocd/commands/admin"
	"github.com/argoproj/argo-cd/v3/common"
	"github.com/argoproj/argo-cd/v3/pkg/apiclient"
	"github.com/argoproj/argo-cd/v3/util/grpc"
	"github.com/spf13/cobra"
	"sigs.k8s.io/kustomize/kustomize/v5/commands"
)

func main() {
	grpc.DisableSRVLookups()
	if err := run(filepath.Base(os.Args[0])); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name string) error {
	switch name {
	case common.CommandApplicationController:
		return controller.NewCommand().Execute()
	case common.CommandRepoServer:
		return reposerver.NewCommand().Execute()
	case common.CommandServer:
		return server.NewCommand().Execute()
	case common.CommandGitAskPass:
		return askpass.NewCommand().Execute()
	case "kustomize":
		return commands.NewDefaultCommand().Execute()
	case "redis-server":
		return redis()
	default:
		root := &cobra.Command{Use: common.CommandCLI}
		root.AddCommand(admin.NewAdminCommand(&apiclient.ClientOptions{}))
		return root.Execute()
	}
}

// redis answers until it is killed. Miniredis lets a key age only when it is told how much time went by.
func redis() error {
	address := flag.String("address", "127.0.0.1:6379", "where to listen, HOST:PORT")
	flag.Parse()
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(*address); err != nil {
		return err
	}
	log.Printf("listening on %s", server.Addr())
	last := time.Now()
	for now := range time.Tick(time.Second) {
		server.FastForward(now.Sub(last))
		last = now
	}
	return nil
}
