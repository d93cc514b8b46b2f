//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A node is a network namespace and a mount namespace. In the latter, /var/lib, /var/log and /run are
// folders of the node's own, so that containerd, runc, the kubelet and the CNI plugins use their usual
// paths, two nodes do not meet in those that cannot be changed (/run/containerd/s,
// /var/lib/kubelet/device-plugins, /var/log/containers), and every mount goes when the last process does.

// nodeDir is what a node sees as /: only lib, log, run and etc exist.
func (c *cluster) nodeDir(n int, elem ...string) string {
	return c.dir(append([]string{nodeName(n)}, elem...)...)
}

// containerdSocket is the socket as the machine sees it; in the node it is /run/containerd/containerd.sock.
func (c *cluster) containerdSocket(n int) string {
	return c.nodeDir(n, "run", "containerd", "containerd.sock")
}

// makeMounts runs in the node's new mount namespace, private so far, as: sh -c makeMounts NODEDIR STATEROOT
// PROGRAM.... Only after its own mounts does it make them shared, which volumes with mountPropagation need.
const makeMounts = `set -e
node=$0 state=$1
shift
mount --bind "$state" "$node/lib/bridge-cluster"
mount --rbind "$node/lib" /var/lib
mount --bind "$node/log" /var/log
mount --bind "$node/run" /run
mount --make-rshared /
exec "$@"`

const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "bridge-cluster/pause:1"
# Lowering oom_score_adj needs CAP_SYS_RESOURCE, which root lacks on some machines.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{etc}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
`

const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "/run/cni",
        "ranges": [{ranges}],
        "routes": [{routes}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: {pki}/ca.crt}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
failCgroupV1: false
enforceNodeAllocatable: []
oomScoreAdj: 0
clusterDNS: [{dns}]
clusterDomain: cluster.local
resolvConf: {etc}/resolv.conf
volumePluginDir: /var/lib/kubelet/volume-plugins
# The machine's disk is not the cluster's to manage.
localStorageCapacityIsolation: false
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
# All of the tests at once have more than the usual 110; the node's range has 254 addresses.
maxPods: 200
failSwapOn: false
registerNode: true
`

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: {dir}/proxy.kubeconfig}
clusterCIDR: {pods}
hostnameOverride: {node}
oomScoreAdj: 0
conntrack: {maxPerCore: 0}
`

// prepareNode makes a node's folders, settings and credentials.
func (c *cluster) prepareNode(n int, ca *authority) error {
	for _, dir := range []string{"lib/bridge-cluster", "lib/kubelet", "log", "run", "etc/cni"} {
		if err := os.MkdirAll(c.nodeDir(n, dir), 0o755); err != nil {
			return err
		}
	}
	text := strings.NewReplacer(
		"{etc}", c.nodeDir(n, "etc"),
		"{pki}", c.dir("pki"),
		"{dir}", c.dir(),
		"{cgroup}", c.cgroup()+"/"+nodeName(n),
		"{dns}", c.serviceAddress(10),
		"{pods}", strings.Join(c.families(c.podRange(0), c.podRange6(0)), ","),
		"{ranges}", strings.Join(c.families(fmt.Sprintf(`[{"subnet": %q}]`, c.podRange(n)), fmt.Sprintf(`[{"subnet": %q}]`, c.podRange6(n))), ", "),
		"{routes}", strings.Join(c.families(`{"dst": "0.0.0.0/0"}`, `{"dst": "::/0"}`), ", "),
		"{node}", nodeName(n),
	)
	for file, content := range map[string]string{
		"containerd.toml":   containerdConfig,
		"cni/pods.conflist": cniConfig,
		"kubelet.yaml":      kubeletConfig,
		"proxy.yaml":        proxyConfig,
		"resolv.conf":       "", // else pods have the machine's resolver
	} {
		if err := os.WriteFile(c.nodeDir(n, "etc", file), []byte(text.Replace(content)), 0o644); err != nil {
			return err
		}
	}
	return c.writeKubeconfig(ca, c.dir(nodeName(n)+".kubeconfig"), "system:node:"+nodeName(n), "system:nodes")
}

// startContainerd starts a node's containerd, in a new mount namespace, waits until it answers and imports
// the images every node needs.
func (c *cluster) startContainerd(ctx context.Context, n int) (process, error) {
	p, err := c.start("containerd-"+nodeName(n), inNetNS(c.nodeNS(n)),
		"unshare", "--mount", "--propagation", "private", "sh", "-c", makeMounts, c.nodeDir(n), stateRoot,
		"containerd", "--config", c.nodeDir(n, "etc", "containerd.toml"))
	if err != nil {
		return p, err
	}
	err = c.until(ctx, p.Name, func() error {
		conn, err := net.DialTimeout("unix", c.containerdSocket(n), time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		return p, err
	}
	for _, image := range []string{"pause", "coredns"} {
		if err := c.importImage(n, c.dir("images", image+".tar")); err != nil {
			return p, err
		}
	}
	return p, nil
}

// startKubelet starts a node's kubelet and kube-proxy beside its containerd.
func (c *cluster) startKubelet(n int, containerd process) error {
	in := inNetNS(c.nodeNS(n), fmt.Sprintf("--mount=/proc/%d/ns/mnt", containerd.PID))
	k := c.Programs.Kubernetes
	_, err := c.start("kubelet-"+nodeName(n), in, k, "kubelet",
		"--config="+c.nodeDir(n, "etc", "kubelet.yaml"),
		"--kubeconfig="+c.dir(nodeName(n)+".kubeconfig"),
		"--hostname-override="+nodeName(n),
		"--node-ip="+strings.Join(c.families(c.nodeAddress(n), c.nodeAddress6(n)), ","),
	)
	if err != nil {
		return err
	}
	_, err = c.start("kube-proxy-"+nodeName(n), in, k, "kube-proxy", "--config="+c.nodeDir(n, "etc", "proxy.yaml"))
	return err
}

// importImage imports an OCI or docker archive into a node's containerd.
func (c *cluster) importImage(n int, archive string) error {
	return command("ctr", "--address", c.containerdSocket(n), "--namespace", "k8s.io", "images", "import", filepath.Clean(archive))
}
