//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/pkg/tunnel"
)

const echoYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers:
      - name: app
        image: %s
        args: [serve, --name, original, --udp, ":7000"]
        ports:
        - {name: http, containerPort: 8080}
        - {name: echo, containerPort: 7000, protocol: UDP}
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}` + restrictedYAML + `---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: echo, port: 7000, targetPort: echo, protocol: UDP}
`

// A workload's datagrams come to the laptop, and the answers go back, from the Service's address.
func TestSwapDatagrams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(echoYAML, s.image))
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app=echo", 1)
	w.awaitReady("app=client", 1)
	before := w.snapshot()
	w.check("--what", "datagrams", "--address", "echo:7000", "--name", "original")

	http, udp := freePort(t), freePort(t)
	start(t, s.sample, nil, "serve", "--name", "laptop", "--http", "127.0.0.1:"+http, "--udp", "127.0.0.1:"+udp).says("listens on")
	b := w.bridge("swap", "deployment", "echo", "--port", http+":http", "--port", udp+":echo")
	b.says("port 7000/udp (echo) -> localhost:" + udp)
	b.says(swapped)
	w.check("--what", "datagrams", "--address", "echo:7000", "--name", "laptop")
	b.terminate()
	w.check("--what", "datagrams", "--address", "echo:7000", "--name", "original")
	w.assertSnapshot(before)
}

// The cluster's resolver answers over UDP, and what nobody answers is refused as UDP refuses.
func TestDatagramsToTheCluster(t *testing.T) {
	t.Parallel()
	d := newDirect(t)
	info, _ := d.client.Info()
	if len(info.Nameservers) == 0 {
		t.Fatal("the pod tells of no resolver")
	}
	kubernetes, err := s.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		asked.Add(1)
		if network != "udp" {
			return nil, errors.New("not over " + network)
		}
		return d.client.DialContext(ctx, network, net.JoinHostPort(info.Nameservers[0], "53"))
	}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	addrs, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
	if err != nil || len(addrs) == 0 || addrs[0] != kubernetes.Spec.ClusterIP || asked.Load() == 0 {
		t.Errorf("%v, %v, want %s", addrs, err, kubernetes.Spec.ClusterIP)
	}

	c, err := d.client.DialContext(ctx, "udp", net.JoinHostPort(d.ip, "9"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port without anybody: %v", err)
	}
	if c, err := d.client.DialContext(ctx, "udp", "nobody.invalid:9"); err == nil {
		t.Error("a name without an address")
		_ = c.Close()
	}
}

// A caller's datagrams arrive at the laptop as they were sent, and the answers at the caller.
func TestDatagramsKeepTheirBoundaries(t *testing.T) {
	t.Parallel()
	d := newDirect(t)
	d.serveWith(func(st *tunnel.Stream) {
		c := st.Datagrams()
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			_, _ = c.Write(buf[:n])
		}
	})
	c, err := d.client.DialContext(t.Context(), "udp", net.JoinHostPort(d.ip, fmt.Sprint(datagramPort)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 64<<10)
	for _, size := range []int{0, 1, 1400, 9000, 40_000, 65507, 0, 3} {
		p := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{}).Read(p)
		for deadline := time.Now().Add(patience); ; { // UDP between the pod and itself may lose one
			if _, err := c.Write(p); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, err := c.Read(buf)
			if err == nil && bytes.Equal(buf[:n], p) {
				break
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline) {
				t.Fatalf("datagram of %d bytes: got %d, %v", size, n, err)
			}
		}
	}
}
