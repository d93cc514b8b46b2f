package proxypod

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// StandbyReplicas is how many proxies stand before the originals: all callers go through them, so one may be lost.
const StandbyReplicas int32 = 2

// Standby is what proxies have that stand before originals.
type Standby struct {
	// Pass are the TCP ports whose callers all go to the originals; a name is one that a Service may know the port by.
	Pass []corev1.ContainerPort
	// Mirror has the originals answer, and the laptop get a copy.
	Mirror bool
	// Members has several laptops share the requests, as the ConfigMap of that name says (Members). Spec.Client is of no use then.
	Members bool
}

func (s *Standby) ports() (out []int32) {
	if s != nil {
		for _, p := range s.Pass {
			out = append(out, p.ContainerPort)
		}
	}
	return out
}

// names adds those ports that Services may know by name, each name once.
func (s *Standby) names(have []corev1.ContainerPort) []corev1.ContainerPort {
	out := slices.Clone(have)
	for _, p := range s.Pass {
		if p.Name != "" && !slices.ContainsFunc(out, func(q corev1.ContainerPort) bool { return q.Name == p.Name }) {
			out = append(out, corev1.ContainerPort{Name: p.Name, ContainerPort: p.ContainerPort, Protocol: corev1.ProtocolTCP})
		}
	}
	return out
}

// spread keeps the proxies apart where the cluster has more than one node.
func spread(pod *corev1.PodSpec, lease string) {
	if pod.Affinity == nil {
		pod.Affinity = &corev1.Affinity{}
	}
	pod.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
			Weight: 100,
			PodAffinityTerm: corev1.PodAffinityTerm{
				LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{ProxyLabel: LabelValue(lease)}},
				TopologyKey:   corev1.LabelHostname,
			},
		}},
	}
}

// originalsUnknown stands in a plan for the address of the originals' Service, which has none before it is created.
const originalsUnknown = "(the address of the originals' Service)"

// WithOriginals is d with the address of the originals' Service.
func WithOriginals(d *appsv1.Deployment, address string) *appsv1.Deployment {
	d = d.DeepCopy()
	for _, c := range d.Spec.Template.Spec.Containers {
		for i := range c.Args {
			if c.Args[i] == originalsUnknown {
				c.Args[i] = address
			}
		}
	}
	return d
}

// OriginalsName is the name of the Service by which a Lease's proxies find the originals, and of the policy that admits them there;
// ProxiesName that of the Service and the policy of the proxies themselves.
func OriginalsName(lease string) string { return serviceName(lease) + "-originals" }

// ProxiesName is described with OriginalsName.
func ProxiesName(lease string) string { return serviceName(lease) + "-proxies" }

// CallersName is the name of the policies, counted from 0, that let callers out to the proxies.
func CallersName(lease string, i int) string {
	return fmt.Sprintf("%s-callers-%d", serviceName(lease), i)
}

// serviceName is a Lease's name without the dots that a Deployment's name may have and a Service's may not.
func serviceName(lease string) string {
	name := strings.ReplaceAll(lease, ".", "-")
	if name == lease {
		return name
	}
	return shorten(name+hashTail(lease), maxService)
}

// OriginalsPort is one of the originals'. Target is its name in the pods, where that may have another number, else the number.
type OriginalsPort struct {
	Port   int32
	Target intstr.IntOrString
}

// Originals is the Service by which the proxies find the originals. It is not headless: the cluster resolves names of ports for
// each pod, leaves out those that are not ready, and needs no DNS for that.
func Originals(lease, namespace string, selector map[string]string, ports []OriginalsPort) *corev1.Service {
	s := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Name: OriginalsName(lease), Namespace: namespace,
			Labels: map[string]string{ManagedByLabel: ManagedBy, ProxyLabel: LabelValue(lease)},
		},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Selector: selector},
	}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{
			Name: fmt.Sprintf("tcp-%d", p.Port), Protocol: corev1.ProtocolTCP, Port: p.Port, TargetPort: p.Target,
		})
	}
	return s
}

// Proxies is a Service for nobody, whose endpoints are a Lease's proxies that are ready.
func Proxies(lease, namespace string) *corev1.Service {
	s := Originals(lease, namespace, map[string]string{ProxyLabel: LabelValue(lease)}, nil)
	s.Name = ProxiesName(lease)
	s.Spec.ClusterIP = corev1.ClusterIPNone
	return s
}

// Policy is a NetworkPolicy of a Lease's.
func Policy(lease, namespace, name string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: namespace,
			Labels: map[string]string{ManagedByLabel: ManagedBy, ProxyLabel: LabelValue(lease)},
		},
		Spec: spec,
	}
}

// ProxySelector selects a Lease's proxies.
func ProxySelector(lease string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{ProxyLabel: LabelValue(lease)}}
}
