//go:build linux

package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/carry"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/pkg/tunnel"
)

// soakEnv asks for the full size or time of those tests that are about endurance.
const soakEnv = "BRIDGE_SOAK"

// soak is full with BRIDGE_SOAK=1, else short.
func soak[T any](full, short T) T {
	if os.Getenv(soakEnv) == "1" {
		return full
	}
	return short
}

// direct is a proxy pod whose tunnel ends in the test itself, so that both ends of a connection can be in its hands: what it
// dials at the pod's own ports comes back to it.
type direct struct {
	*world
	client  *tunnel.Client
	ip      string // the pod's
	ports   proxypod.Ports
	key     tunnel.Key
	inbound chan *tunnel.Stream // what callers of the pod's ports began, without serveWith
	serve   atomic.Pointer[func(*tunnel.Stream)]
	dialled atomic.Int64 // connections so far: they take the ports in turn
}

const (
	// firstListen is the first of the pod's TCP ports. There are several, since a caller's port that has just been used is
	// free again for another of them.
	firstListen, listenPorts = 7000, 4
	datagramPort             = 7000
)

// newDirect starts the proxy, of the executable that this test was built with. What the laptop writes to carriers is also
// written to each of tapes.
func newDirect(t *testing.T, tapes ...io.Writer) *direct {
	t.Helper()
	return startDirect(t, false, nil, tapes...)
}

// startDirect is newDirect, perhaps of a pod with the port for podproxy, by which the tunnel goes then. What the laptop says within TLS is
// written to said, if that is not nil.
func startDirect(t *testing.T, podProxy bool, said io.Writer, tapes ...io.Writer) *direct {
	t.Helper()
	w := newWorld(t)
	key, err := tunnel.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	d := &direct{world: w, key: key, inbound: make(chan *tunnel.Stream)}
	k, err := kube.NewForConfig(s.config, w.ns)
	if err != nil {
		t.Fatal(err)
	}
	p, carriers := d.startProxy(k, podProxy)
	var running sync.WaitGroup
	as := withKey(t, key)
	d.client = &tunnel.Client{Carrier: carriers.Dial, Key: key, Handle: d.handle}
	if len(tapes) > 0 || said != nil {
		d.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
			c, peer, err := carriers.Dial(ctx)
			if err != nil {
				return nil, peer, err
			}
			c = taped{c, io.MultiWriter(append(tapes, c)...)}
			if said != nil {
				c = overheard(c, as, said, &running)
			}
			return c, peer, nil
		}
	}
	d.client.SetReady(true)
	ctx, stop := context.WithCancel(context.Background())
	running.Go(func() { _ = d.client.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	bounded, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.WaitReady(bounded); err != nil {
		t.Fatal(err)
	}
	pods, err := p.Pods(bounded)
	if err != nil {
		t.Fatal(err)
	}
	d.ip = pods[0].Status.PodIP
	return d
}

type taped struct {
	net.Conn
	w io.Writer
}

func (c taped) Write(p []byte) (int, error) { return c.w.Write(p) }

func (d *direct) startProxy(k *kube.Client, podProxy bool) (*proxypod.Proxy, *proxypod.Carriers) {
	d.t.Helper()
	arch := proxypod.Arch(d.t.Context(), k, corev1.PodSpec{}, nil)
	parts, err := carry.Parts(arch)
	if err != nil {
		d.t.Fatalf("%v: make proxies, then build this test again", err)
	}
	lease, err := s.client.CoordinationV1().Leases(d.ns).Create(d.t.Context(), proxypod.OwnLease(proxypod.KindConnect, d.ns, "e2e"), metav1.CreateOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	no := false
	template := corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		AutomountServiceAccountToken: &no,
		Containers:                   []corev1.Container{{Name: "proxy", Image: s.image, ImagePullPolicy: corev1.PullIfNotPresent}},
	}}
	d.ports = proxypod.FreePorts(&template.Spec, nil, podProxy)
	var listen []int32
	for i := range int32(listenPorts) {
		listen = append(listen, firstListen+i)
	}
	deployment, _, err := proxypod.Deployment(proxypod.Spec{
		Name: lease.Name, Namespace: d.ns, Lease: lease.Name, Template: template, Container: "proxy",
		Source: proxypod.Source{Arch: arch, ConfigMaps: proxypod.ConfigMapNames(lease.Name, parts)},
		Ports:  d.ports, Client: d.key.Fingerprint(), Listen: listen, ListenUDP: []int32{datagramPort},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	if err := proxypod.Create(d.t.Context(), k, lease, proxypod.ConfigMaps(d.ns, lease.Name, parts), deployment); err != nil {
		d.t.Fatal(err)
	}
	p := &proxypod.Proxy{Kube: k, Namespace: d.ns, Lease: lease.Name}
	return p, proxypod.NewCarriers(p, d.ports, func(line string) { d.t.Log(line) })
}

// handle is the laptop's end of what callers begin.
func (d *direct) handle(ctx context.Context, st *tunnel.Stream) {
	if err := st.Accept(); err != nil {
		return
	}
	if serve := d.serve.Load(); serve != nil {
		(*serve)(st)
		return
	}
	select {
	case d.inbound <- st:
		<-ctx.Done() // it is closed, or over
	case <-ctx.Done():
	}
}

// serveWith has f serve what callers begin, until it returns.
func (d *direct) serveWith(f func(st *tunnel.Stream)) { d.serve.Store(&f) }

// dial makes a connection from the laptop to a port of the pod's own, which comes back to the laptop.
func (d *direct) dial(ctx context.Context) (*tunnel.Stream, error) {
	port := firstListen + int(d.dialled.Add(1)%listenPorts)
	c, err := d.client.DialContext(ctx, "tcp", net.JoinHostPort(d.ip, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return c.(*tunnel.Stream), nil
}

// pair is both ends of one connection. One call at a time, and not with serveWith.
func (d *direct) pair() (near, far *tunnel.Stream, err error) {
	if near, err = d.dial(d.t.Context()); err != nil {
		return nil, nil, err
	}
	select {
	case far = <-d.inbound:
		return near, far, nil
	case <-time.After(patience):
		return nil, nil, errors.New("the connection does not come back")
	}
}

func (d *direct) mustPair() (near, far *tunnel.Stream) {
	d.t.Helper()
	near, far, err := d.pair()
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// proxyProcess is the folder in /proc of the pod's proxy, which only the embedded cluster shows.
func (d *direct) proxyProcess() string {
	d.t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, path := range found {
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), d.key.Fingerprint().String()) && strings.Contains(string(b), "--tunnel") {
			return filepath.Dir(path)
		}
	}
	d.t.Fatal("the proxy's process is not in /proc")
	return ""
}
