package swap

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Port maps a port of the pod to one on the laptop.
type Port struct {
	Remote int32  `json:"remote"`
	UDP    bool   `json:"udp,omitempty"`  // else TCP
	Name   string `json:"name,omitempty"` // the container port's, if it has one
	Local  int32  `json:"local"`
}

func (p Port) String() string { return fmt.Sprintf("%s -> localhost:%d", p.remote(), p.Local) }

// remote is the pod's port in words: "8080 (http)", "53/udp (dns)".
func (p Port) remote() string {
	text := strconv.Itoa(int(p.Remote))
	if p.UDP {
		text += "/udp"
	}
	if p.Name != "" {
		text += " (" + p.Name + ")"
	}
	return text
}

// at is a place in the pod where a program may listen.
type at struct {
	port int32
	udp  bool
}

func (p Port) at() at { return at{p.Remote, p.UDP} }

// podPorts are the ports at which callers may expect the container: those it declares, and those that a Service names by
// number without any container declaring them; others are the other containers' ports. SCTP is left out, and noted.
func podPorts(c corev1.Container, services []corev1.Service, others map[at]string) (ports []Port, notes []string) {
	add := func(p Port) {
		if _, taken := others[p.at()]; !taken && !slices.ContainsFunc(ports, func(q Port) bool { return q.at() == p.at() }) {
			ports = append(ports, p)
		}
	}
	for _, p := range c.Ports {
		if p.Protocol == corev1.ProtocolSCTP {
			notes = append(notes, fmt.Sprintf("port %d/%s does not come to the laptop: only TCP and UDP do", p.ContainerPort, p.Protocol))
			continue
		}
		add(Port{Remote: p.ContainerPort, UDP: p.Protocol == corev1.ProtocolUDP, Name: p.Name, Local: p.ContainerPort})
	}
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			if p.Protocol == corev1.ProtocolSCTP || p.TargetPort.Type != intstr.Int {
				continue
			}
			target := p.TargetPort.IntVal
			if target == 0 { // the API server fills it in; a Service made by hand in a test may not
				target = p.Port
			}
			add(Port{Remote: target, UDP: p.Protocol == corev1.ProtocolUDP, Local: target})
		}
	}
	return ports, notes
}

// others are the ports that the pod's other containers declare, which go on beside the proxy.
func others(pod corev1.PodSpec, app string) map[at]string {
	out := map[at]string{}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, p := range c.Ports {
			if c.Name != app {
				out[at{p.ContainerPort, p.Protocol == corev1.ProtocolUDP}] = c.Name
			}
		}
	}
	return out
}

// mapPorts applies the --port flags, "LOCAL" or "LOCAL:REMOTE" with REMOTE a number or a container
// port's name. Without flags every port of the pod comes to the same port of the laptop; with flags
// only those named do.
func mapPorts(flags []string, have []Port) ([]Port, error) {
	if len(flags) == 0 {
		if len(have) == 0 {
			return nil, fmt.Errorf("the container declares no port and no Service names one: say which with --port LOCAL:REMOTE")
		}
		return have, nil
	}
	var out []Port
	for _, flag := range flags {
		ports, err := mapPort(flag, have)
		if err != nil {
			return nil, fmt.Errorf("--port %s: %w", flag, err)
		}
		for _, p := range ports {
			if slices.ContainsFunc(out, func(q Port) bool { return q.at() == p.at() }) {
				return nil, fmt.Errorf("--port %s: port %d is mapped twice", flag, p.Remote)
			}
		}
		out = append(out, ports...)
	}
	return out, nil
}

// mapPort is what one flag maps. A number that the pod has for TCP and for UDP, as DNS has 53, means both.
func mapPort(flag string, have []Port) ([]Port, error) {
	localText, remoteText, both := strings.Cut(flag, ":")
	local, err := parsePort(localText)
	if err != nil {
		return nil, err
	}
	pick := func(which func(Port) bool) (ports []Port) {
		for _, p := range have {
			if which(p) {
				p.Local = local
				ports = append(ports, p)
			}
		}
		return ports
	}
	numbered := func(n int32) func(Port) bool { return func(p Port) bool { return p.Remote == n } }
	if !both {
		if ports := pick(numbered(local)); len(ports) > 0 {
			return ports, nil
		}
		ports := pick(func(p Port) bool { return p.Remote == have[0].Remote })
		if len(ports) == 0 || len(ports) != len(have) {
			return nil, fmt.Errorf("which port of the pod? It has %s: write LOCAL:REMOTE", portList(have))
		}
		return ports, nil
	}
	if ports := pick(func(p Port) bool { return p.Name != "" && p.Name == remoteText }); len(ports) > 0 {
		return ports, nil
	}
	number, udp := strings.CutSuffix(remoteText, "/udp")
	remote, err := parsePort(number)
	if err != nil {
		return nil, fmt.Errorf("no port %q: the pod has %s", remoteText, portList(have))
	}
	wanted := numbered(remote)
	if udp {
		wanted = func(p Port) bool { return p.at() == at{remote, true} }
	}
	if ports := pick(wanted); len(ports) > 0 {
		return ports, nil
	}
	return []Port{{Remote: remote, UDP: udp, Local: local}}, nil
}

func parsePort(s string) (int32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port (1 to 65535)", s)
	}
	return int32(n), nil
}

func portList(ports []Port) string {
	if len(ports) == 0 {
		return "none"
	}
	var names []string
	for _, p := range ports {
		names = append(names, p.remote())
	}
	return strings.Join(names, ", ")
}
