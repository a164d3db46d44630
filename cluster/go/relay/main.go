// Relay joins TCP connections accepted on an inherited socket to one address.
//
// A socket belongs for life to the network namespace it was made in. Whoever starts the relay makes
// the listening socket in one namespace and starts this program in another: it accepts on the first
// and dials in the second, and needs no privilege itself.
//
// Bytes are moved by splice(2), since both ends are TCP. The end of one direction is passed on and the other
// direction goes on, as HTTP and exec streams need. A broken connection on one side is a broken one on the other.
package main

import (
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"time"
)

func main() {
	fd := flag.Int("listen-fd", 3, "the inherited listening socket")
	target := flag.String("target", "", "the address to join connections to, HOST:PORT")
	flag.Parse()
	listener, err := net.FileListener(os.NewFile(uintptr(*fd), "listener"))
	if err != nil {
		log.Fatalf("descriptor %d is not a listening socket: %v", *fd, err)
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	for {
		client, err := listener.Accept()
		if err != nil {
			// Out of descriptors is the only error here that passes.
			log.Printf("accept: %v", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		go join(client.(*net.TCPConn), dialer, *target)
	}
}

func join(client *net.TCPConn, dialer *net.Dialer, target string) {
	upstream, err := dialer.Dial("tcp", target)
	if err != nil {
		reset(client)
		return
	}
	server := upstream.(*net.TCPConn)
	var both sync.WaitGroup
	both.Add(2)
	go func() { defer both.Done(); pass(server, client) }()
	go func() { defer both.Done(); pass(client, server) }()
	both.Wait()
	client.Close()
	server.Close()
}

// pass moves bytes until the source ends, then ends only that direction; a failure resets both connections.
func pass(to, from *net.TCPConn) {
	_, err := io.Copy(to, from)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		reset(to)
		reset(from)
		return
	}
	to.CloseWrite()
}

// reset closes at once and tells the peer that something broke, which a plain close would hide.
func reset(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}
