package main

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxPort is TCP's last.
	maxPort = 65535
	// scanners dial at once: a refusal comes back in no time, so this is a second's work.
	scanners = 64
	// scanTimeout is for a port that does not even refuse.
	scanTimeout = 2 * time.Second
)

// ports dials every TCP port of the address, which is a host, and compares those that accept with name, a list with commas.
func (c *check) ports() error {
	ports := make(chan int)
	var mu sync.Mutex
	var open []int
	var wg sync.WaitGroup
	for range scanners {
		wg.Go(func() {
			for p := range ports {
				conn, err := net.DialTimeout("tcp", net.JoinHostPort(c.address, strconv.Itoa(p)), scanTimeout)
				if err != nil {
					continue
				}
				_ = conn.Close()
				mu.Lock()
				open = append(open, p)
				mu.Unlock()
			}
		})
	}
	for p := 1; p <= maxPort; p++ {
		ports <- p
	}
	close(ports)
	wg.Wait()
	slices.Sort(open)
	if have := strings.Trim(strings.ReplaceAll(fmt.Sprint(open), " ", ","), "[]"); have != c.name {
		return fmt.Errorf("ports %s accept, want %s", have, c.name)
	}
	return nil
}
