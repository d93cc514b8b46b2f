//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// api is the cluster's API server, as its administrator sees it. It is plain HTTP with JSON: a client
// library would be most of this program, for a handful of requests.
type api struct {
	client *http.Client
	base   string
}

func (c *cluster) api() (*api, error) {
	ca, err := os.ReadFile(c.dir("pki", "ca.crt"))
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(c.dir("pki", "kubeconfig.crt"), c.dir("pki", "kubeconfig.key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	ns := nsFile(c.nodeNS(1))
	return &api{
		base: fmt.Sprintf("https://%s:%d", c.apiAddress(), apiPort),
		client: &http.Client{
			Timeout: 10 * time.Second,
			Transport: &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
				DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
					return dialIn(ctx, ns, network, address)
				},
			},
		},
	}, nil
}

// dialIn connects from within a network namespace. address has no name to resolve. A socket stays in the
// namespace it was made in, so only the thread that makes it enters, and is given up afterwards.
func dialIn(ctx context.Context, nsFile, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := enterNetNS(nsFile)
		if err != nil {
			results <- result{nil, err}
			return
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		results <- result{conn, err}
	}()
	r := <-results
	return r.conn, r.err
}

// enterNetNS moves the calling thread.
func enterNetNS(nsFile string) error {
	f, err := os.Open(nsFile)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", nsFile, err)
	}
	return nil
}

// do sends one request and decodes the answer into out, unless that is nil.
func (a *api) do(ctx context.Context, method, path, contentType string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, content)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(content, out)
}

func (a *api) get(ctx context.Context, path string, out any) error {
	return a.do(ctx, http.MethodGet, path, "", nil, out)
}

//go:embed manifests.yaml
var manifests string

// document is one of some manifests, with the path that its first line names.
type document struct{ path, text string }

func documents(manifests string) (out []document) {
	for _, doc := range strings.Split(manifests, "\n---\n") {
		for line := range strings.Lines(doc) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "# PATH "); ok {
				out = append(out, document{path, doc})
				break
			}
		}
	}
	return out
}

// applyAll makes the objects of manifests, by server-side apply.
func (a *api) applyAll(ctx context.Context, manifests string) error {
	for _, doc := range documents(manifests) {
		err := a.do(ctx, http.MethodPatch, doc.path+"?fieldManager=bridge-cluster&force=true", "application/apply-patch+yaml", []byte(doc.text), nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// condition is the part of a Node's or a Pod's status that says whether it is Ready.
type condition struct{ Type, Status, Message string }

func ready(conditions []condition) error {
	for _, c := range conditions {
		if c.Type == "Ready" || c.Type == "Available" {
			if c.Status == "True" {
				return nil
			}
			return fmt.Errorf("%s: %s", c.Type, c.Message)
		}
	}
	return fmt.Errorf("no status yet")
}

// isReady returns nil when every node and CoreDNS are Ready and pods can be made; else what is missing.
func (c *cluster) isReady(ctx context.Context, a *api) error {
	for n := 1; n <= c.Nodes; n++ {
		if err := c.nodeReady(ctx, a, n); err != nil {
			return err
		}
	}
	var dns struct {
		Status struct {
			Conditions    []condition
			ReadyReplicas int
		}
	}
	if err := a.get(ctx, "/apis/apps/v1/namespaces/kube-system/deployments/coredns", &dns); err != nil {
		return err
	}
	if dns.Status.ReadyReplicas == 0 {
		return fmt.Errorf("CoreDNS is not ready")
	}
	return a.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
}

func (c *cluster) nodeReady(ctx context.Context, a *api, n int) error {
	var node struct {
		Status struct{ Conditions []condition }
	}
	if err := a.get(ctx, "/api/v1/nodes/"+nodeName(n), &node); err != nil {
		return err
	}
	if err := ready(node.Status.Conditions); err != nil {
		return fmt.Errorf("%s is not ready: %w", nodeName(n), err)
	}
	return nil
}

// until polls until check returns nil; when ctx ends, or a component does, it returns why.
func (c *cluster) until(ctx context.Context, what string, check func() error) error {
	const interval = 50 * time.Millisecond
	for {
		err := check()
		if err == nil {
			return nil
		}
		if dead := c.dead(); dead != nil {
			return fmt.Errorf("waiting for %s: %w", what, dead)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w; logs are in %s", what, ctx.Err(), err, c.dir("log"))
		case <-time.After(interval):
		}
	}
}
