package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"bridge/internal/hint"
)

// endpointsOf has read all of a Service, as YAML.
func endpointsOf(t *testing.T, service string, endpointSlices ...string) *Endpoints {
	t.Helper()
	e := &Endpoints{Namespace: "shop", Target: Target{Service, "x"}}
	e.init()
	for _, p := range e.parts {
		p.synced = true
	}
	e.service = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "x"}}
	if err := yaml.UnmarshalStrict([]byte(service), &e.service.Spec); err != nil {
		t.Fatal(err)
	}
	for _, text := range endpointSlices {
		var s discoveryv1.EndpointSlice
		if err := yaml.UnmarshalStrict([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		e.slices = append(e.slices, s)
	}
	return e
}

func addresses(eps []Endpoint) string {
	var out []string
	for _, ep := range eps {
		out = append(out, ep.Pod+"@"+ep.Address())
	}
	return strings.Join(out, " ")
}

const dnsService = `
selector: {app: dns}
ports:
- {name: dns, port: 53, targetPort: 5353, protocol: UDP}
- {name: dns-tcp, port: 53, targetPort: 5354, protocol: TCP}
- {name: only, port: 99, protocol: UDP}
- {name: odd, port: 7, protocol: SCTP}
`

const dnsSlice = `
ports: [{name: dns, port: 5353, protocol: UDP}, {name: dns-tcp, port: 5354, protocol: TCP}]
addressType: IPv4
endpoints:
- {addresses: [10.0.0.2], targetRef: {kind: Pod, name: b, uid: b}}
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: a, uid: a}}
- {addresses: [10.0.0.3], targetRef: {kind: Pod, name: c, uid: c}, conditions: {ready: false}}
`

const dnsSlice6 = `
ports: [{name: dns, port: 5353, protocol: UDP}, {name: dns-tcp, port: 5354, protocol: TCP}]
addressType: IPv6
endpoints: [{addresses: ["fd00::1"], targetRef: {kind: Pod, name: a, uid: a}}]
`

func TestAServicesPortHasItsProtocol(t *testing.T) {
	e := endpointsOf(t, dnsService, dnsSlice6, dnsSlice)
	for _, c := range []struct{ asked, port, network, to string }{
		{"", "53", "tcp", "a@10.0.0.1:5354 b@10.0.0.2:5354"}, // both: TCP unless asked
		{"udp", "53", "udp", "a@10.0.0.1:5353 b@10.0.0.2:5353"},
		{"", "dns", "udp", "a@10.0.0.1:5353 b@10.0.0.2:5353"},
		{"tcp", "dns-tcp", "tcp", "a@10.0.0.1:5354 b@10.0.0.2:5354"},
		{"", "99", "udp", ""},
	} {
		network, err := e.Network(c.asked, c.port)
		if err != nil || network != c.network {
			t.Errorf("%q %s: %q, %v", c.asked, c.port, network, err)
		}
		eps, err := e.resolve(wanted{network: network, port: c.port, foreign: true})
		if got := addresses(eps); err != nil || got != c.to {
			t.Errorf("%q %s: %q, %v", c.asked, c.port, got, err)
		}
	}
	for _, c := range []struct{ asked, port, words string }{
		{"tcp", "99", "has no port 99"}, {"udp", "dns-tcp", "has no UDP port dns-tcp"}, {"", "1", "has no port 1"}, {"", "odd", "is SCTP"},
	} {
		if _, err := e.Network(c.asked, c.port); hint.CodeOf(err) != hint.Usage || hint.Of(err) == "" || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%q %s: %v", c.asked, c.port, err)
		}
	}
	e.Only(Endpoint{UID: "b"})
	if eps, err := e.resolve(wanted{network: "tcp", port: "53"}); err != nil || len(eps) != 1 || eps[0].Pod != "b" {
		t.Errorf("of one pod alone: %v, %v", eps, err)
	}
}

// Connections go to all ready endpoints in turn; one that could not be dialled just now is left out while there are others.
func TestConnectionsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := endpointsOf(t, dnsService, dnsSlice)
		count := func() string {
			got := map[string]int{}
			for range 30 {
				ep, err := e.Pick(t.Context(), "tcp", "53")
				if err != nil {
					t.Fatal(err)
				}
				got[ep.Pod]++
			}
			return fmt.Sprint(got)
		}
		if got := count(); got != "map[a:15 b:15]" {
			t.Errorf("%s", got)
		}
		e.distrusted["a"] = distrust{until: time.Now().Add(distrustFor)}
		if got := count(); got != "map[b:30]" {
			t.Errorf("without a: %s", got)
		}
		e.distrusted["b"] = distrust{until: time.Now().Add(2 * distrustFor)}
		begin := time.Now()
		if ep, err := e.Pick(t.Context(), "tcp", "53"); err != nil || ep.Pod != "a" || time.Since(begin) != distrustFor {
			t.Errorf("where none is trusted: %v, %v after %v", ep, err, time.Since(begin))
		}
	})
}

// A pod that is gone is passed over, before anybody says that it is; one that refuses has spoken for itself.
func TestAPodThatIsGoneIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for err, all := range map[error]int{syscall.EHOSTUNREACH: 2, syscall.ECONNREFUSED: 1} {
			var dialled []string
			e := endpointsOf(t, dnsService, dnsSlice)
			_, got := e.DialBy(t.Context(), "tcp", "53", func(_ context.Context, address string) (net.Conn, error) {
				if dialled = append(dialled, address); len(dialled) == 2 {
					return nil, nil
				}
				return nil, fmt.Errorf("dial: %w", err)
			})
			if len(dialled) != all || (got == nil) != (all == 2) {
				t.Errorf("%v: %q, %v", err, dialled, got)
			}
			if slices.Sort(dialled); len(slices.Compact(dialled)) != all {
				t.Errorf("one was dialled again: %q", dialled)
			}
		}
	})
}

// A flow of datagrams has no end of its own: it ends when its pod is ready no more and another is.
func TestAFlowEndsWithItsPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := endpointsOf(t, dnsService, dnsSlice)
		flow := func() (conn net.Conn, address string) {
			near, far := net.Pipe()
			t.Cleanup(func() { _ = far.Close() })
			conn, err := e.DialBy(t.Context(), "udp", "53", func(_ context.Context, to string) (net.Conn, error) {
				address = to
				return near, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return conn, address
		}
		ended := func(c net.Conn) bool {
			synctest.Wait()
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			_, err := c.Read(make([]byte, 1))
			return errors.Is(err, io.ErrClosedPipe)
		}
		first, to := flow()
		second, _ := flow()
		all := e.slices
		e.update(func() { e.slices = nil })
		if ended(first) || ended(second) {
			t.Error("it ends where nobody else is ready")
		}
		left := all[0]
		left.Endpoints = slices.DeleteFunc(slices.Clone(left.Endpoints), func(x discoveryv1.Endpoint) bool { return x.Addresses[0]+":5353" == to })
		e.update(func() { e.slices = []discoveryv1.EndpointSlice{left} })
		if !ended(first) || ended(second) {
			t.Errorf("of the two, that to %s is to end", to)
		}
		_ = second.Close()
	})
}

func TestWhatIsNoPodIsReachedFromWithin(t *testing.T) {
	const hand = "ports: [{port: 5432}]\naddressType: IPv4\nendpoints: [{addresses: [192.0.2.7]}]\n"
	for _, c := range []struct {
		name, service string
		slices        []string
		beyond, to    string
	}{
		{"external name", "{type: ExternalName, externalName: db.example.com, ports: [{port: 5432}]}", nil, "is the name db.example.com", "@db.example.com:5432"},
		{"external name without ports", "{type: ExternalName, externalName: db.example.com}", nil, "is the name db.example.com", "@db.example.com:5432"},
		{"made by hand", "{ports: [{port: 5432}]}", []string{hand}, "are no pods", "@192.0.2.7:5432"},
	} {
		e := endpointsOf(t, c.service, c.slices...)
		if why := e.Beyond("tcp"); !strings.Contains(why, c.beyond) {
			t.Errorf("%s: beyond a port-forward is %q", c.name, why)
		}
		eps, err := e.resolve(wanted{network: "tcp", port: "5432", foreign: true})
		if got := addresses(eps); err != nil || got != c.to {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
		if eps, err := e.resolve(wanted{network: "tcp", port: "5432"}); err == nil || hint.Of(err) == "" {
			t.Errorf("%s, for a port-forward: %v, %v", c.name, eps, err)
		}
	}
	e := endpointsOf(t, dnsService, dnsSlice)
	if why := e.Beyond("tcp"); why != "" {
		t.Errorf("pods: %q", why)
	}
	if why := e.Beyond("udp"); why == "" {
		t.Error("UDP goes by port-forward")
	}
	// Who may not read EndpointSlices has the Service's own address.
	e = endpointsOf(t, "{clusterIP: 10.96.0.9, ports: [{port: 5432}]}")
	e.byPods = true
	if eps, err := e.resolve(wanted{network: "tcp", port: "5432", foreign: true}); err != nil || addresses(eps) != "@10.96.0.9:5432" {
		t.Errorf("without EndpointSlices: %v, %v", eps, err)
	}
}

func TestAPodsPortOfANameHasItsProtocol(t *testing.T) {
	p := corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
		{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}, {Name: "http", ContainerPort: 8080},
	}}}}}
	e := &Endpoints{Target: Target{Deployment, "x"}, pods: []corev1.Pod{p}}
	var got []string
	for _, c := range [][2]string{{"", "dns"}, {"", "http"}, {"", "53"}, {"udp", "53"}, {"udp", "http"}} {
		network, err := e.Network(c[0], c[1])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, network)
	}
	if want := []string{"udp", "tcp", "tcp", "udp", "udp"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, ok := containerPort(&p, "udp", "http"); ok {
		t.Error("http is TCP")
	}
}

func TestAPodsPortThatIsNotTCPSaysSo(t *testing.T) {
	p := corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}, {Name: "odd", ContainerPort: 7, Protocol: corev1.ProtocolSCTP}}}}
	e := &Endpoints{Target: Target{Deployment, "x"}}
	if network, err := e.Network("", "dns"); network != "tcp" || err != nil {
		t.Errorf("without pods: %q, %v", network, err)
	}
	e.pods = []corev1.Pod{p}
	if _, err := e.resolve(wanted{network: "tcp", port: "dns"}); !strings.Contains(hint.Of(err), "dns/udp") {
		t.Errorf("%v, hint %q", err, hint.Of(err))
	}
	if _, err := e.Network("", "odd"); hint.CodeOf(err) != hint.Usage || !strings.Contains(err.Error(), "is SCTP") {
		t.Errorf("%v", err)
	}
}
