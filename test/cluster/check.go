//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// packages are the Debian packages a cluster and its tests need, each with a file it brings.
var packages = []struct{ name, file string }{
	{"containerd", "/usr/bin/containerd"},
	{"runc", "/usr/sbin/runc"},
	{"containernetworking-plugins", "/usr/lib/cni/bridge"},
	{"iptables", "/usr/sbin/iptables"},
	{"conntrack", "/usr/sbin/conntrack"},
	{"iproute2", "/usr/sbin/ip"},
	{"iputils-ping", "/usr/bin/ping"},
	{"util-linux", "/usr/bin/nsenter"},
}

// checkMachine says what this machine lacks, and changes nothing.
func checkMachine() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("a cluster needs root (network namespaces, mounts, control groups); run it with sudo, or as root")
	}
	v1, unified, err := cgroupMounts()
	if err != nil {
		return err
	}
	has := func(string) bool { return false }
	if len(v1) > 0 {
		has = func(controller string) bool { return v1[controller] != "" }
	} else if unified != "" {
		content, err := os.ReadFile(filepath.Join(unified, "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("control groups: %w", err)
		}
		has = func(controller string) bool { return slices.Contains(strings.Fields(string(content)), controller) }
	}
	for _, controller := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !has(controller) {
			return fmt.Errorf("the kernel has no control group controller %q mounted below /sys/fs/cgroup; containers need it", controller)
		}
	}
	return nil
}

type kernelTrial struct{ feature, script string }

// kernelTrials are tried in a network and a mount namespace that end with them. $1 is an empty folder
// on the file system clusters live on.
var kernelTrials = []kernelTrial{
	{"network and mount namespaces", "true"},
	{"veth links (CONFIG_VETH)", "ip link add name trial0 type veth peer name trial1"},
	{"bridges (CONFIG_BRIDGE)", "ip link add name trial2 type bridge"},
	{"iptables NAT (CONFIG_IP_NF_NAT or CONFIG_NFT_NAT)", "iptables -w 5 -t nat -A POSTROUTING -j MASQUERADE"},
	{"iptables with the matches comment, conntrack, mark and statistic", `iptables -w 5 -t mangle -A PREROUTING -m comment --comment x -m conntrack --ctstate ESTABLISHED -m mark --mark 1 -m statistic --mode random --probability 0.5 -j DROP`},
	{"overlayfs (CONFIG_OVERLAY_FS) on /var/lib", `mkdir "$1"/l "$1"/u "$1"/w "$1"/m && mount -t overlay -o "lowerdir=$1/l,upperdir=$1/u,workdir=$1/w" overlay "$1"/m`},
}

// ipv6Trial is one more, of a cluster with IPv6.
var ipv6Trial = kernelTrial{"IPv6 with NAT (CONFIG_IP6_NF_NAT or CONFIG_NFT_NAT)", "ip6tables -w 5 -t nat -A POSTROUTING -j MASQUERADE"}

// checkKernel tries each kernel feature a cluster needs and leaves nothing behind.
func checkKernel(ipv6 bool) error {
	dir, err := os.MkdirTemp(filepath.Dir(stateRoot), "bridge-cluster-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	trials := kernelTrials
	if ipv6 {
		trials = append(slices.Clone(trials), ipv6Trial)
	}
	for _, t := range trials {
		if err := command("unshare", "--net", "--mount", "sh", "-c", t.script, "sh", dir); err != nil {
			return fmt.Errorf("this kernel (or container) lacks %s: %w", t.feature, err)
		}
	}
	return nil
}

func missingPackages() (missing []string) {
	for _, p := range packages {
		if _, err := os.Stat(p.file); err != nil {
			missing = append(missing, p.name)
		}
	}
	return missing
}

// noServices is what invoke-rc.d asks before it starts a service: 101 is "not allowed".
const noServices = "#!/bin/sh\nexit 101\n"

// installPackages installs what is missing. The cluster runs containerd itself, so that no service is
// started.
func installPackages(progress io.Writer) error {
	missing := missingPackages()
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("missing: %s; this is not Debian, so install them yourself", strings.Join(missing, ", "))
	}
	fmt.Fprintf(progress, "installing %s (half a minute)\n", strings.Join(missing, ", "))
	const policy = "/usr/sbin/policy-rc.d"
	if f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755); err == nil {
		defer os.Remove(policy)
		_, err = f.WriteString(noServices)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	install := func() error {
		return command("env", append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--no-install-recommends"}, missing...)...)
	}
	err := install()
	if err != nil { // the package lists may be missing or old
		if update := command("apt-get", "update"); update != nil {
			return errors.Join(err, update)
		}
		err = install()
	}
	if err != nil {
		return err
	}
	if still := missingPackages(); len(still) > 0 {
		return fmt.Errorf("installed, and yet missing: %s", strings.Join(still, ", "))
	}
	return nil
}
