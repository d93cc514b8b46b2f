package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// ports prints the TCP ports of a host that take a connection, a line each: the port, and what it answers, quoted, to a GET, to
// another request, and to nothing.
func ports(host string, out io.Writer) error {
	const workers, last = 64, 65535
	next := make(chan int)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		open []int
	)
	for range workers {
		wg.Go(func() {
			for port := range next {
				c, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), 5*time.Second)
				if err != nil {
					continue
				}
				_ = c.Close()
				mu.Lock()
				open = append(open, port)
				mu.Unlock()
			}
		})
	}
	for port := 1; port <= last; port++ {
		next <- port
	}
	close(next)
	wg.Wait()
	slices.Sort(open)
	w := bufio.NewWriter(out)
	for _, port := range open {
		fmt.Fprint(w, port)
		for _, say := range []string{"GET /../../etc/passwd HTTP/1.0\r\n\r\n", "POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi", ""} {
			fmt.Fprintf(w, " %q", answer(net.JoinHostPort(host, strconv.Itoa(port)), say))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// answer is all that comes back in a second.
func answer(address, say string) string {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(c, say)
	b, _ := io.ReadAll(io.LimitReader(c, 1<<20))
	return string(b)
}
