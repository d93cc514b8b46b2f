package proxypod

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"bridge/internal/carry"
)

const (
	// firstPort is where the search for the tunnel's and the health port begins: above the ports
	// programs like to use, below Linux' ephemeral range (32768).
	firstPort = 27100
	// nobody is the user of our container where neither the pod nor the container names one that
	// is not root. It is the number that distroless images use for "nonroot".
	nobody int64 = 65532
	// drainSeconds is the pod's termination grace period: the proxy's drain delay (3 s) and drain
	// (10 s) at their defaults, and room for a slow node.
	drainSeconds int64 = 30

	volumeName = "bridge-proxy"
)

// Source is where the proxy's executable comes from.
type Source struct {
	// Image is the proxy's own image. Empty means that the proxy is carried: mounted from
	// ConfigMaps and started on the image the container already has.
	Image string
	// Arch is the architecture of a carried proxy, "amd64" or "arm64"; the pod is kept to nodes of it.
	Arch string
	// ConfigMaps are the names that hold a carried proxy's parts, in order.
	ConfigMaps []string
}

// podProxyPort is the name of Ports.PodProxy among the container's ports.
const podProxyPort = "bridge-tunnel"

// Ports are the proxy's own ports, chosen beside those of the pod.
type Ports struct {
	Tunnel int32 `json:"tunnel"` // on the pod's loopback
	Health int32 `json:"health"` // on the pod's address
	// PodProxy is the tunnel's port on the pod's address, for the API server's proxy. 0: there is none.
	PodProxy int32 `json:"podProxy,omitempty"`
}

// FreePorts returns ports that no container of the pod declares and that are not in taken; one for the API server's
// proxy only if that is wanted.
func FreePorts(pod *corev1.PodSpec, taken []int32, podProxy bool) Ports {
	used := slices.Clone(taken)
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, p := range c.Ports {
			used = append(used, p.ContainerPort)
		}
	}
	next := int32(firstPort)
	free := func() int32 {
		for slices.Contains(used, next) {
			next++
		}
		used = append(used, next)
		return next
	}
	p := Ports{Tunnel: free(), Health: free()}
	if podProxy {
		p.PodProxy = free()
	}
	return p
}

// container turns c into the proxy: same name, ports, environment and mounts, another program.
// What would act on the program that is no longer there (probes, hooks, devices) goes.
func container(c corev1.Container, pod *corev1.PodSpec, s Spec) corev1.Container {
	args := []string{"--client", s.Client.String()}
	if s.shared() {
		args = membersArgs()
	}
	args = append(args,
		"--tunnel", fmt.Sprintf("127.0.0.1:%d", s.Ports.Tunnel),
		"--health", fmt.Sprintf(":%d", s.Ports.Health))
	ports := c.Ports
	if p := s.Ports.PodProxy; p != 0 {
		args = append(args, "--podproxy", fmt.Sprintf(":%d", p))
		ports = append(slices.Clone(ports), corev1.ContainerPort{Name: podProxyPort, ContainerPort: p, Protocol: corev1.ProtocolTCP})
	}
	for _, p := range s.Listen {
		args = append(args, "--listen", strconv.Itoa(int(p)))
	}
	for _, p := range s.ListenUDP {
		args = append(args, "--listen", strconv.Itoa(int(p))+"/udp")
	}
	for _, p := range s.ToPod {
		args = append(args, "--to-pod", strconv.Itoa(int(p)))
	}
	for _, p := range s.Allow {
		args = append(args, "--allow-cidr", p.String())
	}
	if s.Standby != nil {
		args = append(args, "--originals", originalsUnknown)
		for _, p := range s.Standby.Pass {
			args = append(args, "--pass", strconv.Itoa(int(p.ContainerPort)))
		}
		if s.Standby.Mirror {
			args = append(args, "--mirror")
		}
		ports = s.Standby.names(ports)
	}
	args = append(args, lookArgs(c, pod)...)
	out := corev1.Container{
		Name:            c.Name,
		Image:           c.Image,
		ImagePullPolicy: c.ImagePullPolicy,
		Args:            args,
		Env:             c.Env,
		EnvFrom:         c.EnvFrom,
		VolumeMounts:    c.VolumeMounts,
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("10m"),
				corev1.ResourceMemory: resource.MustParse("32Mi"),
			},
			Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
		},
		Ports:                    ports,
		ReadinessProbe:           readiness(s.Ports.Health),
		SecurityContext:          securityContext(c.SecurityContext, pod.SecurityContext),
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
	if s.LimitCPU {
		out.Resources.Limits[corev1.ResourceCPU] = resource.MustParse("1")
	}
	if s.Source.Image != "" {
		out.Image, out.ImagePullPolicy = s.Source.Image, corev1.PullIfNotPresent
		return out
	}
	carried(&out)
	return out
}

// carried has a container start the proxy from the volume of its parts.
func carried(c *corev1.Container) {
	c.Command = carry.Command()
	c.VolumeMounts = append(slices.Clone(c.VolumeMounts),
		corev1.VolumeMount{Name: volumeName, MountPath: carry.MountPath, ReadOnly: true})
}

// Carry has a container of a pod start the proxy with args in its program's place, from ConfigMaps of these names, for a node of that architecture.
func Carry(pod *corev1.PodSpec, c *corev1.Container, configMaps []string, arch string, args ...string) {
	carried(c)
	c.Args = args
	pod.Volumes = append(pod.Volumes, carriedVolume(configMaps))
	keepToArch(pod, arch)
}

// readiness asks our own program.
func readiness(port int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(port)}},
		PeriodSeconds: 1, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 1,
	}
}

// securityContext passes Pod Security "restricted" whatever the target's own does. A user that the
// target names is kept if it is not root, since volumes may be readable by it alone.
func securityContext(c *corev1.SecurityContext, pod *corev1.PodSecurityContext) *corev1.SecurityContext {
	yes, no := true, false
	out := &corev1.SecurityContext{
		RunAsNonRoot:             &yes,
		AllowPrivilegeEscalation: &no,
		ReadOnlyRootFilesystem:   &yes,
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	switch {
	case c != nil && c.RunAsUser != nil && *c.RunAsUser != 0:
		out.RunAsUser = c.RunAsUser
	case c == nil || c.RunAsUser == nil:
		if pod != nil && pod.RunAsUser != nil && *pod.RunAsUser != 0 {
			break // inherited from the pod
		}
		fallthrough
	default:
		user := nobody
		out.RunAsUser = &user
	}
	if c != nil {
		out.RunAsGroup = c.RunAsGroup
	}
	return out
}

// carriedVolume holds the loader and the proxy's parts, one after the other, in one folder.
func carriedVolume(configMaps []string) corev1.Volume {
	mode := int32(0o555)
	v := &corev1.ProjectedVolumeSource{DefaultMode: &mode}
	for _, name := range configMaps {
		v.Sources = append(v.Sources, corev1.VolumeProjection{
			ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: name}},
		})
	}
	return corev1.Volume{Name: volumeName, VolumeSource: corev1.VolumeSource{Projected: v}}
}

// keepToArch adds the requirement that the node has the architecture of the carried proxy.
func keepToArch(pod *corev1.PodSpec, arch string) {
	if pod.NodeSelector[corev1.LabelArchStable] != "" {
		return
	}
	if pod.NodeSelector == nil {
		pod.NodeSelector = map[string]string{}
	}
	pod.NodeSelector[corev1.LabelArchStable] = arch
}

// Sysctls that Kubernetes counts as safe.
const (
	// lowPortsSysctl, as 0, lets a user who is not root listen on ports below 1024 (since 1.22).
	lowPortsSysctl = "net.ipv4.ip_unprivileged_port_start"
	// pingSysctl are the groups that may send echo requests without a capability (since 1.18), and pingFile is its file's name, which a runtime may say instead; allGroups are all
	// that a user namespace usually has.
	pingSysctl = "net.ipv4." + pingFile
	pingFile   = "ping_group_range"
	allGroups  = "0 65535"
)

// sysctl sets one for the pod, unless the template does.
func sysctl(pod *corev1.PodSpec, name, value string) {
	if pod.SecurityContext == nil {
		pod.SecurityContext = &corev1.PodSecurityContext{}
	}
	if slices.ContainsFunc(pod.SecurityContext.Sysctls, func(s corev1.Sysctl) bool { return s.Name == name }) {
		return
	}
	pod.SecurityContext.Sysctls = append(pod.SecurityContext.Sysctls, corev1.Sysctl{Name: name, Value: value})
}

// errNoContainer says which containers there are.
func errNoContainer(name string, pod *corev1.PodSpec) error {
	var have []string
	for _, c := range pod.Containers {
		have = append(have, c.Name)
	}
	return fmt.Errorf("no container %q in the pod template, it has %q", name, have)
}
