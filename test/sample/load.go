package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// load sends requests at a steady rate until its standard input ends, then prints a Report. It begins,
// and says "started", once the URL answers: a Service takes a moment to be known on a node.
type load struct {
	url    string
	header header
	rate   int
	pooled bool
	// first has each connection go to the first address of the name's alone, as most clients do; Go tries the others too.
	first bool
}

// Report is what load counted.
type Report struct {
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	Errors   []string       `json:"errors,omitempty"` // the first few
	By       map[string]int `json:"by"`               // who answered
	Turns    []Turn         `json:"turns"`            // the first ones
}

// Turn is when somebody else answered than before.
type Turn struct {
	At time.Time `json:"at"`
	By string    `json:"by"`
}

const (
	maxErrors = 10
	maxTurns  = 1000
)

func (l *load) run(stdin io.Reader, stdout io.Writer) error {
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		close(stop)
	}()
	transport := &http.Transport{DisableKeepAlives: !l.pooled, MaxIdleConnsPerHost: l.rate}
	if l.first {
		transport.DialContext = dialFirst
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: transport}
	var (
		mu     sync.Mutex
		report = Report{By: map[string]int{}}
		wg     sync.WaitGroup
	)
	for {
		if _, err := get(client, l.url, l.header); err == nil {
			break
		}
		select {
		case <-stop:
			return fmt.Errorf("%s has never answered", l.url)
		case <-time.After(100 * time.Millisecond):
		}
	}
	fmt.Fprintln(stdout, "started")
	tick := time.NewTicker(time.Second / time.Duration(l.rate))
	defer tick.Stop()
	for {
		select {
		case <-stop:
			wg.Wait()
			return json.NewEncoder(stdout).Encode(report)
		case <-tick.C:
		}
		wg.Go(func() {
			who, err := get(client, l.url, l.header)
			mu.Lock()
			defer mu.Unlock()
			report.Requests++
			if err == nil {
				report.By[who]++
				if n := len(report.Turns); n < maxTurns && (n == 0 || report.Turns[n-1].By != who) {
					report.Turns = append(report.Turns, Turn{time.Now(), who})
				}
				return
			}
			report.Failed++
			if len(report.Errors) < maxErrors {
				report.Errors = append(report.Errors, time.Now().Format("15:04:05.000 ")+err.Error())
			}
		})
	}
}

func dialFirst(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	all, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, network, net.JoinHostPort(all[0], port))
}

// header is one of a request's, NAME=VALUE; empty for none.
type header string

func get(client *http.Client, url string, h header) (who string, err error) {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	if name, value, ok := strings.Cut(string(h), "="); ok {
		r.Header.Set(name, value)
	}
	resp, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", resp.Status)
	}
	return strings.TrimSpace(string(b)), nil
}
