//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The addresses of cluster number i, all within 10.95.0.0 to 10.127.255.255. No namespace has a link to
// the machine's own network, so they cannot collide with it; they differ from cluster to cluster so that
// an address in a log says whose it is.
//
//	10.95.i.0/30   the laptop's link: node1 is .1, the laptop .2
//	10.95.i.4/30   the link between the nodes: node1 is .5, node2 .6
//	10.(96+i)/16   Services; .0.1 is kubernetes, .0.10 is kube-dns
//	10.(112+i)/16  pods; 10.(112+i).1.0/24 on node1, 10.(112+i).2.0/24 on node2
//
// With --ipv6 the nodes, Services and pods have a second address each, of the same numbers: fd00:10:95:i::1 is node1,
// fd00:10:(96+i)::/112 are Services, fd00:10:(112+i):1::/64 are node1's pods. The laptop has none.

func (c *cluster) apiAddress() string    { return fmt.Sprintf("10.95.%d.1", c.Index) }
func (c *cluster) laptopAddress() string { return fmt.Sprintf("10.95.%d.2", c.Index) }
func (c *cluster) serviceRange() string  { return fmt.Sprintf("10.%d.0.0/16", 96+c.Index) }
func (c *cluster) serviceAddress(last int) string {
	return fmt.Sprintf("10.%d.0.%d", 96+c.Index, last)
}
func (c *cluster) podRange(node int) string {
	if node == 0 {
		return fmt.Sprintf("10.%d.0.0/16", 112+c.Index)
	}
	return fmt.Sprintf("10.%d.%d.0/24", 112+c.Index, node)
}

// nodeAddress is the address of a node: node1 and node2 know each other by it.
func (c *cluster) nodeAddress(node int) string {
	if node == 1 {
		return c.apiAddress()
	}
	return fmt.Sprintf("10.95.%d.6", c.Index)
}

func (c *cluster) nodeAddress6(node int) string {
	if node == 1 {
		return fmt.Sprintf("fd00:10:95:%d::1", c.Index)
	}
	return fmt.Sprintf("fd00:10:95:%d::6", c.Index)
}

func (c *cluster) serviceRange6() string { return fmt.Sprintf("fd00:10:%d::/112", 96+c.Index) }

func (c *cluster) podRange6(node int) string {
	if node == 0 {
		return fmt.Sprintf("fd00:10:%d::/48", 112+c.Index)
	}
	return fmt.Sprintf("fd00:10:%d:%d::/64", 112+c.Index, node)
}

// families is what the cluster has of an address or range in both families, as Kubernetes writes a list of them.
func (c *cluster) families(v4, v6 string) []string {
	if c.IPv6 {
		return []string{v4, v6}
	}
	return []string{v4}
}

// only6 is commands for a cluster of both families, and nothing for others.
func (c *cluster) only6(commands string) string {
	if c.IPv6 {
		return commands
	}
	return ""
}

// apiPort is the port the API server listens on.
const apiPort = 6443

// The links, named for what is at their other end.
const (
	laptopLink  = "laptop"  // in node1
	clusterLink = "cluster" // in the laptop
)

func nodeName(node int) string                { return fmt.Sprintf("node%d", node) }
func (c *cluster) nodeNS(node int) string     { return c.Name + "-" + nodeName(node) }
func (c *cluster) laptopNS() string           { return c.Name + "-laptop" }
func (c *cluster) namespaces() []string       { return []string{c.nodeNS(1), c.nodeNS(2), c.laptopNS()} }
func nsFile(ns string) string                 { return filepath.Join("/run/netns", ns) }
func netnsEtc(ns string) string               { return filepath.Join("/etc/netns", ns) }
func inNetNS(ns string, a ...string) []string { return append([]string{"--net=" + nsFile(ns)}, a...) }

// command runs a program to its end, in the environment of components; the error has what it said.
func command(name string, args ...string) error {
	return commandWith("", name, args...)
}

func commandWith(stdin, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = environment()
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// makeNetwork makes the laptop, node1 and the link between them.
func (c *cluster) makeNetwork(progress io.Writer) error {
	node, laptop := c.nodeNS(1), c.laptopNS()
	if err := os.MkdirAll(netnsEtc(laptop), 0o755); err != nil {
		return err
	}
	const resolver = "# The laptop has no resolver until somebody writes one here; \"ip netns exec\" shows this file as /etc/resolv.conf.\n"
	if err := os.WriteFile(filepath.Join(netnsEtc(laptop), "resolv.conf"), []byte(resolver), 0o644); err != nil {
		return err
	}
	if err := addNetNS(progress, node, laptop); err != nil {
		return err
	}
	return errors.Join(
		c.prepareNodeNS(node),
		// There is no default route, so that what is outside is unreachable at once. The node itself, and pods
		// in its namespace, need a route before kube-proxy's rules can turn a Service address into a pod's.
		commandWith(c.expand(`
link add {laptop} type veth peer name {cluster} netns {ns-laptop}
addr add {api}/30 dev {laptop}
link set {laptop} up
route add {services} dev lo src {api}
`+c.only6(`
addr add {node1-6}/128 dev lo nodad
route add {services6} dev lo src {node1-6}
`)), "ip", "-n", node, "-batch", "-"),
		commandWith(c.expand(`
link set lo up
addr add {laptop-ip}/30 dev {cluster}
link set {cluster} up
route add default via {api}
`), "ip", "-n", laptop, "-batch", "-"),
		// The laptop routes everything to node1, as a real one has a default route, and node1 takes the API
		// server's port and pings. This is in mangle, before kube-proxy's rules in nat can turn a Service or
		// NodePort into a pod, and out of the reach of what kube-proxy puts on top of FORWARD. A packet that
		// leaves with a Service's address met kube-proxy's rules while they were exchanged: it is lost, as any
		// may be, and sent again, where the route above would take it round until its TTL ends.
		commandWith(c.expand(`*mangle
-A PREROUTING -i {laptop} -d {api} -p tcp --dport {port} -j ACCEPT
-A PREROUTING -i {laptop} -d {api} -p icmp -j ACCEPT
-A PREROUTING -i {laptop} -d {api} -m conntrack --ctstate ESTABLISHED,RELATED --ctdir REPLY -j ACCEPT
-A PREROUTING -i {laptop} -j DROP
-A FORWARD -i {laptop} -j DROP
-A FORWARD -o {laptop} -j DROP
-A POSTROUTING -d {services} -j DROP
COMMIT
`), "nsenter", inNetNS(node, "iptables-restore", "--noflush")...),
	)
}

// addNetNS makes network namespaces. No other cluster is made or removed meanwhile: "ip netns add" and
// removeNetwork both change /run/netns itself.
func addNetNS(progress io.Writer, names ...string) error {
	unlock, err := lock(filepath.Dir(stateRoot), progress)
	if err != nil {
		return err
	}
	defer unlock()
	for _, ns := range names {
		if err := command("ip", "netns", "add", ns); err != nil {
			return err
		}
	}
	return nil
}

// prepareNodeNS lets a node's namespace forward packets.
func (c *cluster) prepareNodeNS(ns string) error {
	script := "echo 1 >/proc/sys/net/ipv4/ip_forward" + c.only6("; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	return errors.Join(
		command("ip", "-n", ns, "link", "set", "lo", "up"),
		command("nsenter", inNetNS(ns, "sh", "-c", script)...),
	)
}

// joinNode2 makes node2's namespace and the link and routes between the nodes.
func (c *cluster) joinNode2(progress io.Writer) error {
	if err := addNetNS(progress, c.nodeNS(2)); err != nil {
		return err
	}
	return errors.Join(
		c.prepareNodeNS(c.nodeNS(2)),
		commandWith(c.expand(`
link add node2 type veth peer name node1 netns {ns-node2}
addr add {link1}/30 dev node2
link set node2 up
route add {pods2} via {node2} dev node2
`+c.only6(`
addr add {link1-6}/126 dev node2 nodad
route add {pods2-6} via {node2-6} dev node2
`)), "ip", "-n", c.nodeNS(1), "-batch", "-"),
		commandWith(c.expand(`
addr add {node2}/30 dev node1
link set node1 up
route add default via {link1}
`+c.only6(`
addr add {node2-6}/126 dev node1 nodad
route add default via {link1-6}
`)), "ip", "-n", c.nodeNS(2), "-batch", "-"),
	)
}

// expand puts the cluster's names and addresses into a text.
func (c *cluster) expand(text string) string {
	return strings.NewReplacer(
		"{name}", c.Name,
		"{api}", c.apiAddress(),
		"{port}", fmt.Sprint(apiPort),
		"{laptop}", laptopLink,
		"{cluster}", clusterLink,
		"{laptop-ip}", c.laptopAddress(),
		"{ns-laptop}", c.laptopNS(),
		"{ns-node2}", c.nodeNS(2),
		"{link1}", fmt.Sprintf("10.95.%d.5", c.Index),
		"{node2}", c.nodeAddress(2),
		"{pods2}", c.podRange(2),
		"{node1-6}", c.nodeAddress6(1),
		"{link1-6}", fmt.Sprintf("fd00:10:95:%d::5", c.Index),
		"{node2-6}", c.nodeAddress6(2),
		"{pods2-6}", c.podRange6(2),
		"{services6}", c.serviceRange6(),
		"{pods}", c.podRange(0),
		"{services}", c.serviceRange(),
		"{kubernetes}", c.serviceAddress(1),
		"{dns}", c.serviceAddress(10),
	).Replace(text)
}

// removeNetwork deletes the cluster's namespaces, and with them their links, routes and rules; after the
// last namespace of the machine also what "ip netns add" mounted to hold them.
func (c *cluster) removeNetwork(progress io.Writer) error {
	unlock, err := lock(filepath.Dir(stateRoot), progress)
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, ns := range c.namespaces() {
		if _, err := os.Lstat(nsFile(ns)); err == nil {
			errs = append(errs, command("ip", "netns", "delete", ns))
		}
		errs = append(errs, os.RemoveAll(netnsEtc(ns)))
	}
	for _, dir := range []string{"/run/netns", "/etc/netns"} {
		if rest, err := os.ReadDir(dir); err != nil || len(rest) > 0 {
			continue
		}
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
		errs = append(errs, os.Remove(dir))
	}
	return errors.Join(errs...)
}
