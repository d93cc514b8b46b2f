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
	Name   string `json:"name,omitempty"` // the container port's, if it has one
	Local  int32  `json:"local"`
}

func (p Port) String() string {
	if p.Name == "" {
		return fmt.Sprintf("%d -> localhost:%d", p.Remote, p.Local)
	}
	return fmt.Sprintf("%d (%s) -> localhost:%d", p.Remote, p.Name, p.Local)
}

// podPorts are the TCP ports at which callers may expect the container: those it declares, and
// those that a Service names by number without any container declaring them; others are the other
// containers' ports. UDP is left out, and noted.
func podPorts(c corev1.Container, services []corev1.Service, others map[int32]string) (ports []Port, notes []string) {
	add := func(p Port) {
		if _, taken := others[p.Remote]; !taken && !slices.ContainsFunc(ports, func(q Port) bool { return q.Remote == p.Remote }) {
			ports = append(ports, p)
		}
	}
	for _, p := range c.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			notes = append(notes, fmt.Sprintf("port %d/%s does not come to the laptop: only TCP does", p.ContainerPort, p.Protocol))
			continue
		}
		add(Port{Remote: p.ContainerPort, Name: p.Name, Local: p.ContainerPort})
	}
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP || p.TargetPort.Type != intstr.Int {
				continue
			}
			target := p.TargetPort.IntVal
			if target == 0 { // the API server fills it in; a Service made by hand in a test may not
				target = p.Port
			}
			add(Port{Remote: target, Local: target})
		}
	}
	return ports, notes
}

// others are the ports that the pod's other containers declare, which go on beside the proxy.
func others(pod corev1.PodSpec, app string) map[int32]string {
	out := map[int32]string{}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, p := range c.Ports {
			if c.Name != app {
				out[p.ContainerPort] = c.Name
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
			return nil, fmt.Errorf("the container declares no TCP port and no Service names one: say which with --port LOCAL:REMOTE")
		}
		return have, nil
	}
	var out []Port
	for _, flag := range flags {
		p, err := mapPort(flag, have)
		if err != nil {
			return nil, fmt.Errorf("--port %s: %w", flag, err)
		}
		if slices.ContainsFunc(out, func(q Port) bool { return q.Remote == p.Remote }) {
			return nil, fmt.Errorf("--port %s: port %d is mapped twice", flag, p.Remote)
		}
		out = append(out, p)
	}
	return out, nil
}

func mapPort(flag string, have []Port) (Port, error) {
	localText, remoteText, both := strings.Cut(flag, ":")
	local, err := parsePort(localText)
	if err != nil {
		return Port{}, err
	}
	if !both {
		if i := slices.IndexFunc(have, func(p Port) bool { return p.Remote == local }); i >= 0 {
			return have[i], nil
		}
		if len(have) != 1 {
			return Port{}, fmt.Errorf("which port of the pod? It has %s: write LOCAL:REMOTE", portList(have))
		}
		return Port{Remote: have[0].Remote, Name: have[0].Name, Local: local}, nil
	}
	if i := slices.IndexFunc(have, func(p Port) bool { return p.Name != "" && p.Name == remoteText }); i >= 0 {
		return Port{Remote: have[i].Remote, Name: have[i].Name, Local: local}, nil
	}
	remote, err := parsePort(remoteText)
	if err != nil {
		return Port{}, fmt.Errorf("no port %q: the pod has %s", remoteText, portList(have))
	}
	p := Port{Remote: remote, Local: local}
	if i := slices.IndexFunc(have, func(q Port) bool { return q.Remote == remote }); i >= 0 {
		p.Name = have[i].Name
	}
	return p, nil
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
		if p.Name != "" {
			names = append(names, fmt.Sprintf("%d (%s)", p.Remote, p.Name))
		} else {
			names = append(names, strconv.Itoa(int(p.Remote)))
		}
	}
	return strings.Join(names, ", ")
}
