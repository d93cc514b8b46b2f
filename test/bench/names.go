//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	bareEcho = "UDP echo"
	linkEcho = "UDP echo, link"

	// The Service that each cluster has, in whose namespace the bench is.
	serviceName = "kubernetes.default.svc.cluster.local."
	shortName   = "kubernetes."
	newNames    = "default.svc.cluster.local."
)

// resolvers are who is asked for names; farResolvers are those that a delay may matter to.
var (
	asksConnect = &variant{name: "connect's DNS", what: "the DNS server of bridge connect", bridges: true, open: openNames}
	asksCluster = &variant{name: "cluster's DNS", what: "the cluster's resolver (CoreDNS), asked in the cluster, from the node; it knows no short names", open: openClusterNames}

	resolvers = []*variant{
		{name: bareEcho, what: "a datagram's echo on the loopback", open: openEcho},
		asksConnect, asksCluster,
	}
	farResolvers = []*variant{
		{name: linkEcho, what: "a datagram's echo on the node, over the laptop's link", open: openLinkEcho},
		asksConnect,
	}
)

var nameMeasures = []measure{
	{figures: []figure{{"a cached name, p50", micros, true}, {"a cached name, p99", micros, true}}, run: lookups(cached(serviceName))},
	{figures: []figure{{"a cached short name, p50", micros, true}, {"a cached short name, p99", micros, true}}, run: shortLookups},
	{figures: []figure{{"a new name, p50", micros, true}, {"a new name, p99", micros, true}}, run: lookups(fresh)},
	{figures: []figure{{"a cached name, 32 sockets", perSecond, false}}, run: manyLookups},
}

// question yields the names that are asked for, and the answer's code.
type question struct {
	name func() string
	code dnsmessage.RCode
}

func cached(name string) question {
	return question{func() string { return name }, dnsmessage.RCodeSuccess}
}

var (
	asked atomic.Int64
	fresh = question{func() string { return fmt.Sprintf("new-%d-%d.%s", os.Getpid(), asked.Add(1), newNames) }, dnsmessage.RCodeNameError}
)

func openEcho(_ context.Context, w *world, r *route) (err error) {
	at := local(freePort())
	r.dial = datagrams(at)
	r.server, err = start(listening, nil, w.program("bench"), "echo-datagrams", "-listen", at)
	return err
}

func openLinkEcho(_ context.Context, w *world, r *route) (err error) {
	at := net.JoinHostPort(w.node, strconv.Itoa(serverPort))
	r.dial = datagrams(at)
	r.server, err = start(listening, nil, append([]string{"nsenter"}, onNode(w.program("bench"), "echo-datagrams", "-listen", at)...)...)
	return err
}

func openNames(_ context.Context, w *world, r *route) error {
	at := local(freePort())
	r.dial = datagrams(at)
	return r.between("ALL_PROXY=", nil, w.program("bridge"), "connect", "--listen=127.0.0.1:0", "--dns-listen="+at)
}

func openClusterNames(ctx context.Context, w *world, r *route) error {
	ip, err := w.kubectl(ctx, "", "get", "service", "-n", "kube-system", "kube-dns", "-o", "jsonpath={.spec.clusterIP}")
	if err == nil {
		r.dial = inNetworkOf("/run/netns/"+clusterName+"-node1", "udp", net.JoinHostPort(ip, "53"))
	}
	return err
}

func datagrams(address string) func() (net.Conn, error) {
	return func() (net.Conn, error) { return net.Dial("udp", address) }
}

// echoDatagrams sends back what it gets until ctx is done.
func echoDatagrams(ctx context.Context, address string) error {
	pc, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	fmt.Println(listening, pc.LocalAddr())
	stop := context.AfterFunc(ctx, func() { _ = pc.Close() })
	defer stop()
	conn := pc.(*net.UDPConn)
	for buf := make([]byte, maxDatagram); ; {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		_, _ = conn.WriteToUDPAddrPort(buf[:n], from)
	}
}

// maxDatagram is more than a question or its answer has here.
const maxDatagram = 4096

// lookup asks for one name, and looks at the answer: a question that comes back as it was is an echo's.
func lookup(c net.Conn, q question, buf []byte) error {
	name, err := dnsmessage.NewName(q.name())
	if err != nil {
		return err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(asked.Add(1)), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := m.AppendPack(buf[:0])
	if err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	n, err := c.Read(buf[:cap(buf)])
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var p dnsmessage.Parser
	h, err := p.Start(buf[:n])
	if err != nil {
		return err
	}
	if h.ID != m.ID || h.Response && h.RCode != q.code {
		return fmt.Errorf("%s: the answer %d to %d: %v", name, h.ID, m.ID, h.RCode)
	}
	return nil
}

// ask asks for names on a socket of its own until end, and returns how long each took.
func (r *route) ask(q question, begin, end time.Time) (took []time.Duration, err error) {
	c, err := r.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(end.Add(slack))
	for buf := make([]byte, maxDatagram); len(took) < maxSamples; {
		began := time.Now()
		if !began.Before(end) {
			break
		}
		if err := lookup(c, q, buf); err != nil {
			return took, err
		}
		if began.After(begin) {
			took = append(took, time.Since(began))
		}
	}
	return took, nil
}

func lookups(q question) func(*route, pace) ([]float64, error) {
	return func(r *route, p pace) ([]float64, error) {
		begin := time.Now().Add(p.warm)
		took, err := r.ask(q, begin, begin.Add(p.time))
		p50, p99 := quantiles(took)
		return []float64{p50, p99}, err
	}
}

func shortLookups(r *route, p pace) ([]float64, error) {
	if r.variant == asksCluster {
		return []float64{nan, nan}, nil
	}
	return lookups(cached(shortName))(r, p)
}

// manyLookups is how many answers a second many sockets get together.
func manyLookups(r *route, p pace) ([]float64, error) {
	begin := time.Now().Add(p.warm)
	n, err := each(many, func(int) (float64, error) {
		took, err := r.ask(cached(serviceName), begin, begin.Add(p.time))
		return float64(len(took)), err
	})
	return []float64{n / p.time.Seconds()}, err
}
