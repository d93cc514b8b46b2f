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
	stall  time.Duration // who waits for longer has stalled
	// first has each connection go to the first address of the name's alone, as most clients do; Go tries the others too.
	first bool
}

// Report is what load counted.
type Report struct {
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	Errors   []string       `json:"errors,omitempty"` // the first few
	Stalled  int            `json:"stalled"`          // answered, but late
	By       map[string]int `json:"by"`               // who answered
	Turns    []Turn         `json:"turns"`            // the first ones
	Worst    time.Duration  `json:"worst"`            // from the request to its answer or its failure
	P99      time.Duration  `json:"p99"`              // of the same, 99 % took no longer; rounded up to a millisecond
	Harmed   []Harmed       `json:"harmed,omitempty"` // the first ones that failed or stalled, as they ended
}

// Harmed is a request that failed or stalled.
type Harmed struct {
	Begun time.Time     `json:"begun"`
	Took  time.Duration `json:"took"`
}

// Turn is when somebody else answered than before.
type Turn struct {
	At time.Time `json:"at"`
	By string    `json:"by"`
}

const (
	maxErrors = 10
	maxTurns  = 1000
	maxHarmed = 20_000 // of 200 a second all that are begun in more than a minute and a half
	loadTime  = 10 * time.Second
)

// times counts how many requests took how many milliseconds; the last also counts all that took longer.
type times [loadTime/time.Millisecond + 1]int

func (t *times) add(took time.Duration) { t[min(took/time.Millisecond, loadTime/time.Millisecond)]++ }

// most is what that part of n requests took at most.
func (t *times) most(part float64, n int) time.Duration {
	seen := 0
	for i, count := range t {
		if seen += count; seen > 0 && float64(seen) >= part*float64(n) {
			return time.Duration(i+1) * time.Millisecond
		}
	}
	return 0
}

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
	client := &http.Client{Timeout: loadTime, Transport: transport}
	var (
		mu     sync.Mutex
		report = Report{By: map[string]int{}}
		took   times
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
			report.P99 = took.most(.99, report.Requests)
			return json.NewEncoder(stdout).Encode(report)
		case <-tick.C:
		}
		wg.Go(func() {
			begun := time.Now()
			who, err := get(client, l.url, l.header)
			this := Harmed{Begun: begun, Took: time.Since(begun)}
			mu.Lock()
			defer mu.Unlock()
			report.Requests++
			report.Worst = max(report.Worst, this.Took)
			took.add(this.Took)
			late := err == nil && this.Took > l.stall
			if late {
				report.Stalled++
			}
			if (late || err != nil) && len(report.Harmed) < maxHarmed {
				report.Harmed = append(report.Harmed, this)
			}
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
