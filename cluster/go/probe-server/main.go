// Probe-server is a pod for trying out a cluster: it answers over HTTP, looks names up and fetches URLs from inside.
//
//	probe-server serve :8080   GET / answers the pod's name, /lookup?name=N its addresses, /fetch?url=U what U answers
//	probe-server lookup NAME   prints the addresses of NAME
//	probe-server fetch URL     prints what URL answers
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const patience = 5 * time.Second

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: probe-server serve ADDRESS | lookup NAME | fetch URL")
		os.Exit(2)
	}
	var answer string
	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(os.Args[2])
	case "lookup":
		answer, err = lookup(context.Background(), os.Args[2])
	case "fetch":
		answer, err = fetch(context.Background(), os.Args[2])
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if answer != "" {
		fmt.Println(answer)
	}
}

func serve(address string) error {
	name, _ := os.Hostname()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %s from %s\n", r.Method, r.URL.Path, r.RemoteAddr)
		fmt.Fprintln(w, name)
	})
	mux.HandleFunc("/lookup", func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, lookup, r.URL.Query().Get("name"))
	})
	mux.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, fetch, r.URL.Query().Get("url"))
	})
	server := &http.Server{Addr: address, Handler: mux}
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-stopped
		server.Close()
	}()
	fmt.Printf("serving on %s as %s\n", address, name)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func reply(w http.ResponseWriter, r *http.Request, ask func(context.Context, string) (string, error), about string) {
	answer, err := ask(r.Context(), about)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	fmt.Fprintln(w, answer)
}

func lookup(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	return strings.Join(addresses, "\n"), err
}

func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answered %s: %s", url, response.Status, body)
	}
	return strings.TrimRight(string(body), "\n"), nil
}
