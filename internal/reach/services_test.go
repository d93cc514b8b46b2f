package reach

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func service(name string, ports ...corev1.ServicePort) corev1.Service {
	return corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.ServiceSpec{Ports: ports}}
}

// Each has the same address in every run, apart from the others' and from what systems use themselves.
func TestServicesHaveAddressesOfTheirOwn(t *testing.T) {
	if !OwnAddresses() {
		t.Skip("this system's loopback has one address")
	}
	loopback, reserved := netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/16")
	var services []corev1.Service
	for i := range 20_000 { // of 2^24: some 12 would clash
		services = append(services, service(fmt.Sprintf("s-%05d", i), corev1.ServicePort{Port: 80}))
	}
	seen := map[netip.Addr]string{}
	for _, target := range targetsOf(services) {
		a := target.Address
		if other := seen[a]; other != "" || !loopback.Contains(a) || reserved.Contains(a) || a.As4()[3] == 0 || a.As4()[3] == 255 {
			t.Fatalf("%s has %s, as %q", target.Object.Name, a, other)
		}
		seen[a] = target.Object.Name
	}
	alone := targetsOf(services[7:8])[0].Address
	if seen[alone] != "s-00007" {
		t.Errorf("s-00007 alone has %s, which is %q's among all", alone, seen[alone])
	}
}

func TestServicesHaveTheirPorts(t *testing.T) {
	targets := targetsOf([]corev1.Service{
		service("z", corev1.ServicePort{Port: 53, Protocol: corev1.ProtocolUDP}, corev1.ServicePort{Port: 53}, corev1.ServicePort{Port: 7, Protocol: corev1.ProtocolSCTP}),
		service("none"),
		service("a", corev1.ServicePort{Port: 80}),
	})
	if len(targets) != 2 || targets[0].Object.Name != "a" || len(targets[1].Ports) != 2 {
		t.Fatalf("%+v", targets)
	}
	if p := targets[1].Ports; p[0].Network != "udp" || p[1].Network != "tcp" || p[0].Local != 53 || p[0].Remote != "53" {
		t.Errorf("%+v", p)
	}
}
