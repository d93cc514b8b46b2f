//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"bridge/internal/proxypod"
)

const (
	direct = "direct"
	// Deployments of the server, one for each variant that swaps its own.
	passedOn = "passed-on"
	unchosen = "unchosen"
)

// standbyVariants are the ways of a caller in the cluster.
var standbyVariants = []*variant{
	{name: direct, what: "a pod of the server", open: openDirect},
	{name: "passed on", what: "bridge swap --mode standby, where the laptop's process has ended: each connection goes on to the original", bridges: true, open: openStandby(passedOn)},
	{name: "not chosen", what: "bridge swap --header NAME=VALUE, of which no request has it: each connection is read as far as it is HTTP (the HTTP requests alone), and goes on to the original", bridges: true, open: openStandby(unchosen, "--header=X-Developer=me")},
}

var standbyMeasures = []measure{
	{figures: []figure{{"bulk up, 1 connection", megabytes, false}}, run: bulkOnly(orderUp, 1)},
	{figures: []figure{{"bulk down, 1 connection", megabytes, false}}, run: bulkOnly(orderDown, 1)},
	{figures: []figure{{"bulk down, 32 connections", megabytes, false}}, run: bulkOnly(orderDown, many)},
	{figures: []figure{{"128 B requests, 32 connections", perSecond, false}}, run: requests},
	{figures: []figure{{"HTTP requests, 32 kept connections", perSecond, false}}, run: httpRequests},
	{figures: []figure{{"idle echo, p50", micros, true}, {"idle echo, p99", micros, true}}, run: idleEcho},
	{figures: []figure{{"connections (dial, 1 echo, close)", perSecond, false}}, run: connections},
}

const deploymentYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      automountServiceAccountToken: false
      containers:
      - {name: bench, image: "` + image + `", imagePullPolicy: Never, args: [serve]}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{port: %[2]d}]
---
`

func openDirect(_ context.Context, w *world, r *route) error {
	r.dial = fromNode(w.server.ip)
	return nil
}

// openStandby swaps the Deployment of that name, which is made if it is not there.
func openStandby(name string, flags ...string) func(context.Context, *world, *route) error {
	return func(ctx context.Context, w *world, r *route) error {
		if _, err := w.kubectl(ctx, fmt.Sprintf(deploymentYAML, name, serverPort), "apply", "-f", "-"); err != nil {
			return err
		}
		if _, err := w.kubectl(ctx, "", "rollout", "status", "deployment/"+name, "--timeout=60s"); err != nil {
			return err
		}
		port := freePort()
		var err error
		if r.server, err = start(listening, nil, w.program("bench"), "serve", "-listen", local(port)); err != nil {
			return err
		}
		argv := append([]string{w.program("bridge"), "swap", "deployment", name, "--mode=standby", fmt.Sprintf("--port=%d:%d", port, serverPort)}, flags...)
		if err := r.between("swapped: ", nil, argv...); err != nil {
			return err
		}
		if name == passedOn {
			r.server.stop()
		}
		proxy, err := w.pod(ctx, "-l", proxypod.ProxyLabel, "--field-selector=status.phase=Running")
		r.pod, r.dial = proxy.uid, fromNode(proxy.ip)
		return err
	}
}

// fromNode dials the server's port of a pod in the network of the node, where callers' packets come from as well.
func fromNode(ip string) func() (net.Conn, error) {
	return inNetwork("/run/netns/"+clusterName+"-node1", net.JoinHostPort(ip, strconv.Itoa(serverPort)))
}

// httpRequests is how many requests a second kept connections do together.
func httpRequests(r *route, p pace) ([]float64, error) {
	begin := time.Now().Add(p.warm)
	n, err := each(many, func(int) (float64, error) {
		c, err := r.dial()
		if err != nil {
			return 0, err
		}
		defer c.Close()
		_ = c.SetDeadline(begin.Add(p.time + slack))
		if _, err := getUntil(c, begin); err != nil {
			return 0, err
		}
		return getUntil(c, begin.Add(p.time))
	})
	return []float64{n / p.time.Seconds()}, err
}

// getUntil sends requests on c, one after the other, until end, and counts the answers.
func getUntil(c net.Conn, end time.Time) (n float64, err error) {
	answers := bufio.NewReader(c)
	for ; time.Now().Before(end); n++ {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
			return n, fmt.Errorf("request: %w", err)
		}
		answer, err := http.ReadResponse(answers, nil)
		if err != nil {
			return n, fmt.Errorf("answer: %w", err)
		}
		size, err := io.Copy(io.Discard, answer.Body)
		if err != nil {
			return n, fmt.Errorf("answer: %w", err)
		}
		if size != request || answer.StatusCode != http.StatusOK {
			return n, fmt.Errorf("answer: status %s with %d bytes", answer.Status, size)
		}
	}
	return n, nil
}
