// Package proxypod is a pod that runs bridge's proxy: it builds the objects (pure functions, no
// API calls), waits until the pod runs and says why when it does not, and opens the tunnel to it.
// pkg/swap puts such a pod in a workload's place, bridge connect starts one of its own (Own). It shares
// client-go with internal/kube and pkg/swap.
package proxypod

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/carry"
	"bridge/internal/kube"
	"bridge/internal/undo"
	"bridge/pkg/tunnel"
)

// Spec is what a proxy is made from.
type Spec struct {
	// Name is the Deployment's, Namespace where it goes.
	Name, Namespace string
	// Lease is the name of the claim that owns it. Its UID is filled in when the Lease exists (Own).
	Lease string
	// Template is the pod to stand in for; Container the one in it that becomes the proxy.
	Template  corev1.PodTemplateSpec
	Container string
	// Alone makes a pod to look at the container's environment and files by: without the template's other containers, and without its
	// labels, so that no Service and no controller takes it for one of the workload's.
	Alone bool

	Source Source
	Ports  Ports
	// Client is the laptop's key, the only one the proxy lets in, unless Standby says otherwise.
	Client tunnel.Fingerprint
	// Listen and ListenUDP are the pod's ports whose traffic goes to the laptop; none for connect.
	Listen, ListenUDP []int32
	// ToPod are TCP ports of the pod's other containers that the laptop may dial on the pod's loopback.
	ToPod []int32
	// Init has the template's init containers run too that are no sidecars, which run in any case; not with Alone, where none does.
	Init bool
	// Allow are link-local and metadata addresses that the laptop may have dialled.
	Allow []netip.Prefix
	// Pings has the proxy be let send the laptop's echo requests.
	Pings bool
	// Standby makes proxies that stand before the originals, which go on: nil when none do. They are as with Alone.
	Standby *Standby
	// Labels are on the pods whatever else they have: those by which a controller has Services select them.
	Labels map[string]string
	// LimitCPU sets a CPU limit: where a quota wants one of every container. Usually there is none, for
	// throttling shows as tenfold tail latency.
	LimitCPU bool
}

// shared is whether several laptops may share the proxy.
func (s Spec) shared() bool { return s.Standby != nil && s.Standby.Members }

// controllerLabels are set by a controller on the pods it makes. On ours they would make that
// controller count or adopt them. (Those that a StatefulSet's controller sets it does not ask for: it goes by the pod's owner and name.)
var controllerLabels = []string{
	appsv1.DefaultDeploymentUniqueLabelKey, // pod-template-hash
	appsv1.ControllerRevisionHashLabelKey,
	kube.RolloutHashLabel,
	"pod-template-generation",
	"batch.kubernetes.io/controller-uid",
	"batch.kubernetes.io/job-name",
	"controller-uid",
	"job-name",
}

// Deployment is the proxy's, with the pod standing in for the template's. The notes say, one a
// line, what of the template could not be kept.
func Deployment(s Spec) (d *appsv1.Deployment, notes []string, err error) {
	template := s.Template.DeepCopy()
	pod := &template.Spec
	s.Alone = s.Alone || s.Standby != nil
	if s.Alone {
		alone(template, s.Container)
	}
	app := slices.IndexFunc(pod.Containers, func(c corev1.Container) bool { return c.Name == s.Container })
	switch {
	case app < 0:
		return nil, nil, errNoContainer(s.Container, pod)
	case pod.HostNetwork:
		return nil, nil, errors.New("the pod uses the node's network (hostNetwork): a second pod cannot stand in for it on the same node")
	case pod.OS != nil && pod.OS.Name == corev1.Windows:
		return nil, nil, errors.New("the pod runs on Windows; the proxy is a Linux program")
	}

	before := pod.Containers[app]
	notes = initContainers(pod, s.Init)
	pod.Containers[app] = container(before, pod, s)
	l := &literals{template: &s.Template, proxy: s.Container, alone: s.Alone}
	l.apply(pod)
	notes = append(notes, l.notes...)
	if len(l.annotations) > 0 {
		if template.Annotations == nil {
			template.Annotations = map[string]string{}
		}
		maps.Copy(template.Annotations, l.annotations)
	}
	// The originals still hold these on their nodes.
	for _, list := range [][]corev1.Container{pod.InitContainers, pod.Containers} {
		for i := range list {
			for j := range list[i].Ports {
				list[i].Ports[j].HostPort, list[i].Ports[j].HostIP = 0, ""
			}
		}
	}
	notes = append(notes, dropVolumes(pod, &pod.Containers[app])...)
	for _, d := range before.VolumeDevices {
		notes = append(notes, fmt.Sprintf("volume %q at %s is not in the proxy's pod", d.Name, d.DevicePath))
	}
	if s.shared() {
		mountMembers(pod, &pod.Containers[app], s.Lease)
	}
	if s.Source.Image == "" {
		pod.Volumes = append(pod.Volumes, carriedVolume(s.Source.ConfigMaps))
		keepToArch(pod, s.Source.Arch)
	}
	if slices.ContainsFunc(slices.Concat(s.Listen, s.ListenUDP, s.Standby.ports()), func(p int32) bool { return p < 1024 }) {
		sysctl(pod, lowPortsSysctl, "0")
	}
	if s.Pings {
		sysctl(pod, pingSysctl, allGroups)
	}

	// The original still runs: rules that keep two pods of the workload apart would keep ours out.
	if pod.Affinity != nil {
		pod.Affinity.PodAntiAffinity = nil
	}
	pod.TopologySpreadConstraints = nil
	if s.Standby != nil {
		spread(pod, s.Lease)
	}
	pod.NodeName = ""
	pod.ReadinessGates, pod.SchedulingGates, pod.ResourceClaims = nil, nil, nil
	pod.Resources = nil
	leaveLostNodes(pod)
	pod.RestartPolicy = corev1.RestartPolicyAlways
	pod.ActiveDeadlineSeconds = nil
	grace := drainSeconds
	pod.TerminationGracePeriodSeconds = &grace

	label := map[string]string{ProxyLabel: LabelValue(s.Lease)}
	labels := maps.Clone(template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for _, k := range controllerLabels {
		delete(labels, k)
	}
	maps.Copy(labels, s.Labels)
	maps.Copy(labels, label)
	delete(template.Annotations, UndoAnnotation) // a bare pod's own
	delete(template.Annotations, undo.SwappedAnnotation)
	replicas := int32(1)
	if s.Standby != nil {
		replicas = StandbyReplicas
	}
	// One more pod would have no session: it would share the callers, and reset them, or pass them on.
	return deployment(s.Name, s.Namespace, label, replicas, corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: template.Annotations},
		Spec:       *pod,
	}), notes, nil
}

// deployment is one whose pods end before others come. label alone selects them.
func deployment(name, namespace string, label map[string]string, replicas int32, template corev1.PodTemplateSpec) *appsv1.Deployment {
	zero := int32(0)
	labels := map[string]string{ManagedByLabel: ManagedBy}
	maps.Copy(labels, label)
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas:             &replicas,
			RevisionHistoryLimit: &zero,
			Strategy:             appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Selector:             &metav1.LabelSelector{MatchLabels: label},
			Template:             template,
		},
	}
}

// initContainers leaves a pod its sidecars, and the init containers before and between them only if they are wanted: what they do (a migration)
// the original's have done already.
func initContainers(pod *corev1.PodSpec, wanted bool) (notes []string) {
	var names []string
	pod.InitContainers = slices.DeleteFunc(pod.InitContainers, func(c corev1.Container) bool {
		sidecar := kube.Sidecar(c)
		if !sidecar {
			name := c.Name
			if shared := sharedVolumes(pod, c); wanted && len(shared) > 0 {
				word := "volume"
				if len(shared) > 1 {
					word = "volumes"
				}
				name += fmt.Sprintf(" (with the original's own %s %s, which that uses meanwhile)", word, strings.Join(shared, " and "))
			}
			names = append(names, name)
		}
		return !sidecar && !wanted
	})
	switch list := strings.Join(names, ", "); {
	case len(names) == 0:
	case wanted:
		notes = append(notes, fmt.Sprintf("init containers are run once more, in the proxy's pod, before it answers: %s", list))
	default:
		notes = append(notes, fmt.Sprintf("init containers are not run in the proxy's pod: %s; --init runs them", list))
	}
	return notes
}

// sharedVolumes are those that a container may write to and the original's pod has too: the very same, not a copy.
func sharedVolumes(pod *corev1.PodSpec, c corev1.Container) (names []string) {
	for _, v := range pod.Volumes {
		own := keptVolume(v) || v.Ephemeral != nil || v.CSI != nil || v.Image != nil
		claim := v.PersistentVolumeClaim
		if own || claim != nil && claim.ReadOnly {
			continue
		}
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name && !m.ReadOnly }) ||
			slices.ContainsFunc(c.VolumeDevices, func(d corev1.VolumeDevice) bool { return d.Name == v.Name }) {
			names = append(names, strconv.Quote(v.Name))
		}
	}
	return names
}

// alone takes everything off that is another's than the container's.
func alone(t *corev1.PodTemplateSpec, container string) {
	t.Labels = nil
	t.Spec.InitContainers = nil
	t.Spec.Containers = slices.DeleteFunc(t.Spec.Containers, func(c corev1.Container) bool { return c.Name != container })
	t.Spec.HostNetwork, t.Spec.HostPID, t.Spec.HostIPC, t.Spec.ShareProcessNamespace = false, false, false, nil
}

// lostNodeSeconds is how long the proxy stays with a node that does not answer. Usual are five minutes, in which callers have
// other pods; they have no other proxy.
const lostNodeSeconds = 10

// leaveLostNodes has the pod replaced soon when its node is lost, unless the template says something else.
func leaveLostNodes(pod *corev1.PodSpec) {
	for _, taint := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if slices.ContainsFunc(pod.Tolerations, func(t corev1.Toleration) bool {
			return (t.Key == taint || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "")
		}) {
			continue
		}
		seconds := int64(lostNodeSeconds)
		pod.Tolerations = append(pod.Tolerations, corev1.Toleration{
			Key: taint, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
		})
	}
}

// keptVolume tells whether a second pod may have the same volume beside the first.
func keptVolume(v corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil || v.EmptyDir != nil
}

// dropVolumes takes the mounts of volumes that cannot be shared (claims, host paths, devices) off
// the proxy, then every volume that nobody mounts any more. Other containers keep theirs.
func dropVolumes(pod *corev1.PodSpec, proxy *corev1.Container) (notes []string) {
	shareable := map[string]bool{volumeName: true}
	for _, v := range pod.Volumes {
		shareable[v.Name] = keptVolume(v)
	}
	proxy.VolumeMounts = slices.DeleteFunc(slices.Clone(proxy.VolumeMounts), func(m corev1.VolumeMount) bool {
		if !shareable[m.Name] {
			notes = append(notes, fmt.Sprintf("volume %q at %s is not mounted in the proxy's pod", m.Name, m.MountPath))
		}
		return !shareable[m.Name]
	})
	used := map[string]bool{}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
		}
		for _, d := range c.VolumeDevices {
			used[d.Name] = true
		}
	}
	pod.Volumes = slices.DeleteFunc(pod.Volumes, func(v corev1.Volume) bool { return !used[v.Name] })
	return notes
}

// ConfigMapNames are the names of the ConfigMaps that ConfigMaps makes, for a Source.
func ConfigMapNames(lease string, parts []carry.Part) []string {
	var names []string
	for _, p := range parts {
		names = append(names, lease+"-"+p.Name)
	}
	return names
}

// ConfigMaps carry the proxy's parts to the node.
func ConfigMaps(namespace, lease string, parts []carry.Part) []*corev1.ConfigMap {
	var out []*corev1.ConfigMap
	yes := true
	for i, name := range ConfigMapNames(lease, parts) {
		out = append(out, &corev1.ConfigMap{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{
				Name: name, Namespace: namespace,
				Labels: map[string]string{ManagedByLabel: ManagedBy, ProxyLabel: LabelValue(lease)},
			},
			BinaryData: parts[i].Files,
			Immutable:  &yes,
		})
	}
	return out
}
