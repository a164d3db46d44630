// Fake-gpu is a kubelet device plugin that advertises devices which are not there, so that scheduling by GPU can be
// exercised on machines without one. A container that gets devices is told their names in FAKE_GPUS and gets nothing else.
//
// A kubelet that starts forgets its plugins and deletes their sockets. So the plugin serves and registers in rounds:
// a round ends when the kubelet's socket is another file than at its start, or the plugin's own is gone.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const pollEvery = time.Second

func main() {
	resource := flag.String("resource", "nvidia.com/gpu", "the resource name to advertise")
	count := flag.Int("count", 8, "how many devices the node pretends to have")
	folder := flag.String("folder", api.DevicePluginPath, "the kubelet's device plugin folder")
	flag.Parse()
	for {
		if err := round(*folder, *resource, *count); err != nil {
			log.Printf("will register again: %v", err)
		}
		time.Sleep(pollEvery)
	}
}

// round serves and registers once, and returns when that registration no longer holds.
func round(folder, resource string, count int) error {
	kubelet := filepath.Join(folder, filepath.Base(api.KubeletSocket))
	own := filepath.Join(folder, "fake-"+strings.NewReplacer("/", "-", ".", "-").Replace(resource)+".sock")
	before, err := identity(kubelet)
	if err != nil {
		return err
	}
	if err := os.Remove(own); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", own)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, newPlugin(count))
	go server.Serve(listener)
	defer server.Stop()
	if err := register(kubelet, filepath.Base(own), resource); err != nil {
		return err
	}
	log.Printf("registered %d %s", count, resource)
	for {
		time.Sleep(pollEvery)
		if now, err := identity(kubelet); err != nil || now != before {
			return fmt.Errorf("the kubelet was restarted")
		}
		if _, err := identity(own); err != nil {
			return fmt.Errorf("the socket was removed")
		}
	}
}

// identity tells one socket from another that later has its name.
func identity(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	stat := info.Sys().(*syscall.Stat_t)
	return fmt.Sprint(stat.Dev, stat.Ino, stat.Ctim.Nano()), nil
}

func register(kubelet, endpoint, resource string) error {
	conn, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(conn).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: endpoint, ResourceName: resource, Options: &api.DevicePluginOptions{},
	})
	return err
}

type plugin struct {
	api.UnimplementedDevicePluginServer
	devices []*api.Device
}

func newPlugin(count int) *plugin {
	p := &plugin{}
	for i := range count {
		p.devices = append(p.devices, &api.Device{ID: fmt.Sprintf("fake-gpu-%d", i), Health: api.Healthy})
	}
	return p
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch sends the devices once: they never change. The kubelet drops them when the stream ends.
func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	if err := stream.Send(&api.ListAndWatchResponse{Devices: p.devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"FAKE_GPUS": strings.Join(container.DevicesIds, ",")},
		})
	}
	return response, nil
}
