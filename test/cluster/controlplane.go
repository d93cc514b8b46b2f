//go:build linux

package main

import "strings"

// startEtcdAndAPIServer starts both at once: the API server waits for etcd.
func (c *cluster) startEtcdAndAPIServer() error {
	in := inNetNS(c.nodeNS(1))
	k := c.Programs.Kubernetes
	_, err := c.start("etcd", in, k, "etcd",
		"--name=etcd",
		"--data-dir="+c.dir("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--unsafe-no-fsync", // a cluster is not meant to outlive a power failure
		"--log-level=warn",
	)
	if err != nil {
		return err
	}
	pki := func(file string) string { return c.dir("pki", file) }
	_, err = c.start("kube-apiserver", in, k, "kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address="+c.apiAddress(),
		"--bind-address=0.0.0.0", "--secure-port=6443",
		"--cert-dir="+c.dir("pki"),
		"--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"),
		"--client-ca-file="+pki("ca.crt"),
		"--kubelet-client-certificate="+pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key="+pki("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+pki("sa.pub"),
		"--service-account-signing-key-file="+pki("sa.key"),
		"--service-cluster-ip-range="+strings.Join(c.families(c.serviceRange(), c.serviceRange6()), ","),
		"--authorization-mode=Node,RBAC",
		// Servers behind it, as of the metrics API, know by these who asks.
		"--requestheader-client-ca-file="+pki("front-proxy/ca.crt"), "--requestheader-allowed-names="+frontProxy,
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+pki("front-proxy/client.crt"), "--proxy-client-key-file="+pki("front-proxy/client.key"),
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
	)
	return err
}

// startControllers starts what needs an API server that answers.
func (c *cluster) startControllers() error {
	in := inNetNS(c.nodeNS(1))
	k := c.Programs.Kubernetes
	_, err := c.start("kube-controller-manager", in, k, "kube-controller-manager",
		"--kubeconfig="+c.dir("controller-manager.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--kube-api-qps=500", "--kube-api-burst=500", // with the default, its start alone takes five seconds
		"--use-service-account-credentials",
		"--root-ca-file="+c.dir("pki", "ca.crt"),
		"--service-account-private-key-file="+c.dir("pki", "sa.key"),
		"--flex-volume-plugin-dir="+c.dir("volume-plugins"), // else it makes a folder below /usr/libexec
		"--cluster-signing-cert-file="+c.dir("pki", "ca.crt"),
		"--cluster-signing-key-file="+c.dir("pki", "ca.key"),
	)
	if err != nil {
		return err
	}
	_, err = c.start("kube-scheduler", in, k, "kube-scheduler",
		"--kubeconfig="+c.dir("scheduler.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--kube-api-qps=500", "--kube-api-burst=500", // with the default, its start alone takes five seconds
	)
	return err
}
