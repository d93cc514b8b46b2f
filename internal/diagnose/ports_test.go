package diagnose

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"bridge/internal/kube"
)

var notReady = strings.NewReplacer(`"True"`, `"False"`, "ready: true", "ready: false").Replace(running)

func TestPorts(t *testing.T) {
	both, neither, loopback, alone := answer{loopback: open, address: open}, answer{loopback: closed, address: closed}, answer{loopback: open, address: closed}, answer{loopback: closed, address: open}
	hangs := answer{loopback: silent, address: silent}
	declares := withPod("ports: [{name: http, containerPort: 8080}]", "", running)
	service := aService("selector: {app: it}, ports: [{port: 80, targetPort: 8080}]")
	row := func(name, documents string, port int32, a answer, ids, says string) tried {
		return tried{name, fmt.Sprintf("%s\n---\nkind: Port\nport: %d\nloopback: %d\naddress: %d\nmayNot: %v\ntls: %v\n", documents, port, a.loopback, a.address, a.mayNot, a.tls), ids, says}
	}
	const refused = `Get "http://10.113.1.27:8080/": dial tcp 10.113.1.27:8080: connect: connection refused`
	asks := func(probe, status string) string {
		return withPod("ports: [{name: http, containerPort: 8080}], readinessProbe: "+probe, "", status)
	}
	try(t, []tried{
		row("it listens", declares+service, 8080, both, "", ""),
		row("at its address alone", declares+service, 8080, alone, "", ""),
		row("on loopback", declares+service, 8080, loopback, "port-loopback", "container app declares and service/it sends to"),
		row("on loopback, where a probe asks", asks("{httpGet: {port: http}}", notReady)+service+event("Pod/it", "Unhealthy", "Readiness probe failed: "+refused), 8080, loopback, "port-loopback", "0.0.0.0"),
		row("on loopback, where two probes ask", withPod("livenessProbe: {tcpSocket: {port: 8080}}, readinessProbe: {tcpSocket: {port: 8080}}", "", running), 8080, loopback, "port-loopback", "its liveness and readiness probes ask"),
		row("on loopback, or so it seems", declares+service, 8080, answer{loopback: open, mayNot: true}, "", ""),
		row("nobody listens", declares+service, 8080, neither, "port-closed", "kubectl logs it -n shop -c app"),
		row("nobody listens, but at another", strings.Replace(declares, "ports: [{", "ports: [{containerPort: 9090}, {", 1)+"\n---\nkind: Port\nport: 9090\naddress: 1\n"+service, 8080, neither, "port-closed", "something listens at 9090"),
		row("a Service, and nobody listens but at another", declares+"\n---\nkind: Port\nport: 8080\naddress: 1\n"+aService("selector: {app: it}, ports: [{port: 9090}]"), 9090, neither, "service-port-closed", "set targetPort to the port that the program listens on; something listens at 8080"),
		row("a Service, and nobody listens but on loopback", withPod("", "", running)+"\n---\nkind: Port\nport: 8080\nloopback: 1\naddress: 2\n"+aService("selector: {app: it}, ports: [{port: 9090}]"), 9090, neither, "service-port-closed", "set targetPort to the port that the program listens on; something listens at 8080 (on the pod's loopback alone)"),
		row("nobody listens, for nobody", declares, 8080, neither, "port-closed", "container app declares"),
		row("not on loopback, and more may not be asked", declares+service, 8080, answer{loopback: closed, mayNot: true}, "port-closed", "what the pod's address answers is not known"),
		row("nobody listens, as the kubelet says", asks("{httpGet: {port: http}}", notReady)+event("Pod/it", "Unhealthy", "Readiness probe failed: "+refused), 8080, neither, "probe-refused", ""),
		row("nobody listens where a probe asks, but at another", strings.Replace(asks("{httpGet: {port: http}}", notReady), "ports: [{", "ports: [{containerPort: 9090}, {", 1)+"\n---\nkind: Port\nport: 9090\naddress: 1\n"+event("Pod/it", "Unhealthy", "Readiness probe failed: "+refused), 8080, neither, "probe-refused", "something listens at 9090: have the probe ask there"),
		row("gRPC, and nobody listens", asks("{grpc: {port: 8080}}", notReady)+event("Pod/it", "Unhealthy", `Readiness probe failed: timeout: failed to connect service "10.113.1.27:8080" within 1s: context deadline exceeded`), 8080, neither, "probe-refused", "nothing listens where it asks"),
		row("gRPC, and what listens speaks another language", asks("{grpc: {port: 8080}}", notReady)+event("Pod/it", "Unhealthy", `Readiness probe failed: timeout: failed to connect service "10.113.1.27:8080" within 1s: context deadline exceeded`), 8080, both, "probe-timeout", "does not speak gRPC"),
		row("it starts", strings.Replace(declares, "T11:00:00Z", "T11:59:58Z", 1), 8080, neither, "port-closed", "it may be still starting"),
		row("TLS", asks("{tcpSocket: {port: 8080}}", running), 8080, answer{loopback: open, address: open, tls: true}, "probe-tls", "scheme: HTTPS"),
		row("TLS, and another probe asks HTTPS", withPod("ports: [{name: http, containerPort: 8080}], livenessProbe: {tcpSocket: {port: 8080}}, readinessProbe: {httpGet: {port: 8080, scheme: HTTPS}}", "", running), 8080, answer{loopback: open, address: open, tls: true}, "", ""),
		row("it hangs", declares+service, 8080, hangs, "port-silent", "container app declares and service/it sends to"),
		row("it hangs, and the address may not be asked", declares+service, 8080, answer{loopback: silent, mayNot: true}, "port-silent", "livenessProbe"),
		row("it hangs, and a probe is content with a connection", asks("{tcpSocket: {port: 8080}}", running), 8080, answer{loopback: silent, address: open}, "port-silent", "its readiness probe asks"),
		row("it hangs, as the kubelet says", asks("{httpGet: {port: http}}", notReady)+event("Pod/it", "Unhealthy", "Readiness probe failed: context deadline exceeded"), 8080, hangs, "probe-timeout", ""),
		row("it hangs while it starts", strings.Replace(declares, "T11:00:00Z", "T11:59:58Z", 1), 8080, hangs, "port-silent", "it may be still starting"),
		row("it answers, where it is not asked for by a name", declares+service, 8080, answer{loopback: open, address: silent}, "", ""),
		row("a Service, and it hangs", declares+aService("selector: {app: it}, ports: [{port: 9090}]"), 9090, hangs, "port-silent", "port 9090, which service/it sends to"),
		row("a Service, and it listens", declares+aService("selector: {app: it}, ports: [{port: 9090}]"), 9090, both, "", ""),
		row("a Service, and nobody listens", declares+aService("selector: {app: it}, ports: [{port: 9090}]"), 9090, neither, "service-port-closed", "declare only http:8080/TCP"),
		row("a Service, and nothing is declared", withPod("", "", running)+aService("selector: {app: it}, ports: [{port: 9090}]"), 9090, neither, "service-port-closed", "where nothing listens"),
		row("a Service, and nothing is known", declares+aService("selector: {app: it}, ports: [{port: 9090}]"), 8080, both, "service-port-undeclared", ""),
	})
}

// What is dialled is bounded: two pods of a workload, those first that are not ready.
func TestWhatIsDialled(t *testing.T) {
	const ports = "ports: [{containerPort: 8080}, {containerPort: 53, protocol: UDP}, {name: admin, containerPort: 9090}], readinessProbe: {httpGet: {port: admin}}"
	one := dialledPod(ports)
	var documents []string
	for i := range 3 {
		pod := one
		if i == 2 {
			pod = strings.Replace(withPod(ports, "", notReady), "phase: Pending", "phase: Running", 1)
		}
		documents = append(documents, owned(strings.Replace(pod, "name: it,", fmt.Sprintf("name: it%d,", i), 1)))
	}
	s := load(t, append(documents, orders, aService("selector: {app: it}, ports: [{port: 80, targetPort: 7070}]"))...)
	asks, left := s.asks(nil)
	var got []string
	for _, a := range asks {
		got = append(got, fmt.Sprintf("%s:%d %v", a.pod, a.port, a.proved))
	}
	if text := strings.Join(got, ", "); left != 3 || text != "it2:7070 false, it2:8080 false, it2:9090 false, it0:7070 false, it0:8080 false, it0:9090 true" {
		t.Errorf("it dials %s and leaves %d", text, left)
	}
	if asks, left := s.asks(map[Ref]bool{{"pod", "shop", "other"}: true}); len(asks) > 0 || left > 0 {
		t.Errorf("about another pod it dials %d", len(asks))
	}
}

// The port of a headless Service is dialled, too, and no more is asked of it: nobody has said that something listens there.
func TestAHeadlessServicesPortIsDialled(t *testing.T) {
	const web = "ports: [{name: web, port: 80, targetPort: 8080}]"
	for service, want := range map[string][]string{
		"selector: {app: it}, " + web:                                                {"8080 true"},
		"clusterIP: None, selector: {app: it}, " + web:                               {"80 false", "8080 true"},
		"clusterIP: None, selector: {app: it}, ports: [{name: web, port: 8080}]":     {"8080 true"},
		"clusterIP: None, selector: {app: it}, ports: [{port: 53, protocol: UDP}]":   nil,
		"clusterIP: None, selector: {app: it}, ports: [{port: 80, targetPort: htp}]": nil,
	} {
		s := load(t, dialledPod(""), aService(service))
		asks, _ := s.asks(nil)
		var got []string
		for _, a := range asks {
			got = append(got, fmt.Sprint(a.port, " ", a.http))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: it dials %q, want %q", service, got, want)
		}
		s.answers[place{"shop", "it", 80}] = answer{loopback: silent, address: closed}
		for _, f := range s.report(nil).Findings {
			if f.Object.Kind != "service" {
				t.Errorf("%s: found %+v", service, f)
			}
		}
	}
}

// What is said to speak HTTP is asked for an answer, unless a probe has had one.
func TestWhatIsAskedForAnAnswer(t *testing.T) {
	const protocol = "selector: {app: it}, ports: [{port: 80, targetPort: 8080, appProtocol: "
	for name, c := range map[string]struct {
		container, service string
		asked              bool
	}{
		"by its name":              {"ports: [{name: http-api, containerPort: 8080}]", "", true},
		"another name":             {"ports: [{name: httpx, containerPort: 8080}]", "", false},
		"by a Service's name":      {"", "selector: {app: it}, ports: [{name: web, port: 80, targetPort: 8080}]", true},
		"by a Service's protocol":  {"", protocol + "HTTP}]", true},
		"another protocol":         {"", protocol + "https, name: http}]", false},
		"no name":                  {"ports: [{containerPort: 8080}]", "", false},
		"a probe that connects":    {"ports: [{name: http, containerPort: 8080}], readinessProbe: {tcpSocket: {port: http}}", "", true},
		"a probe that asks":        {"ports: [{name: http, containerPort: 8080}], readinessProbe: {httpGet: {port: http}}", "", false},
		"a probe that is over":     {"ports: [{name: http, containerPort: 8080}], startupProbe: {httpGet: {port: http}}", "", true},
		"a probe, and one that is": {"ports: [{name: http, containerPort: 8080}], startupProbe: {httpGet: {port: http}}, livenessProbe: {httpGet: {port: 8080}}", "", false},
	} {
		documents := []string{dialledPod(c.container)}
		if c.service != "" {
			documents = append(documents, aService(c.service))
		}
		asks, _ := load(t, documents...).asks(nil)
		if len(asks) != 1 || asks[0].port != 8080 || asks[0].http != c.asked {
			t.Errorf("%s: %+v", name, asks)
		}
	}
}

// podServer is an API server whose pods give nothing at their addresses. On their loopback serve has the port and its connection; nil
// for an account that may not use it. What serve waits for is over with done.
func podServer(t *testing.T, serve func(port string, conn io.ReadWriter, done <-chan bool)) *kube.Client {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/proxy"):
			<-r.Context().Done()
			return
		case serve == nil:
			w.WriteHeader(http.StatusForbidden)
			return
		case r.Header.Get("Upgrade") == "websocket":
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		streams := make(chan httpstream.Stream, 2)
		w.Header().Set(httpstream.HeaderProtocolVersion, portforward.PortForwardProtocolV1Name)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(st httpstream.Stream, _ <-chan struct{}) error {
			streams <- st
			return nil
		})
		if conn == nil {
			return
		}
		defer conn.Close()
		for {
			select {
			case st := <-streams:
				if st.Headers().Get(corev1.StreamType) == corev1.StreamTypeData {
					serve(st.Headers().Get(corev1.PortHeader), st, conn.CloseChan())
					_ = st.Close()
				}
			case <-conn.CloseChan():
				return
			}
		}
	}))
	t.Cleanup(server.Close)
	k, err := kube.NewForConfig(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// An address from which nothing comes is silent; one for which there was no time is not known. Neither says anything of the program.
func TestAnAddressThatGivesNothing(t *testing.T) {
	t.Parallel()
	k := podServer(t, nil)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for ctx, want := range map[context.Context]reply{t.Context(): silent, short: unknown} {
		for _, web := range []bool{false, true} {
			ask := ask{place: place{"shop", "it", 8080}, http: web}
			var may mayDial
			a := ask.knock(ctx, k, &may)
			if ask.askOn(ctx, k, &may, &a); a.address != want || a.loopback != unknown || a.mayNot || a.prompt {
				t.Errorf("%+v, want %d", a, want)
			}
		}
	}
	s := load(t, dialledPod("ports: [{containerPort: 8080}]"))
	s.dial(t.Context(), k, nil)
	if s.Dialled.Ports != 0 || s.Dialled.Left != 1 {
		t.Errorf("without the right to forward: %+v", s.Dialled)
	}
}

// dialledPod is one that runs.
func dialledPod(container string) string {
	return strings.Replace(withPod(container, "", running), "phase: Pending", "phase: Running", 1)
}

// dialUntil dials until that holds, a few times: a machine that has much else to do may need more than the time there is.
func (s *Snapshot) dialUntil(t *testing.T, k *kube.Client, holds func() bool) {
	t.Helper()
	for range 5 {
		if s.dial(t.Context(), k, nil); holds() {
			return
		}
	}
	t.Errorf("not in five times: %+v, %+v", s.Dialled, s.answers)
}

// That a policy keeps the API server from a port is a guess, made where a request is answered in the pod as fast as one could have been at
// its address: not of a program that is slow everywhere, nor of one that does not speak HTTP.
func TestPortsThatAreSilentAtTheirAddress(t *testing.T) {
	t.Parallel()
	k := podServer(t, func(port string, conn io.ReadWriter, done <-chan bool) {
		switch port {
		case "8081":
			select {
			case <-time.After(knockTime + 200*time.Millisecond):
			case <-done:
			}
		case "5672": // wants another protocol's first words, and waits for the rest of them
			_, _ = io.Copy(io.Discard, conn)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	})
	s := load(t, dialledPod("ports: [{name: http, containerPort: 8080}, {name: http-slow, containerPort: 8081}, {name: amqp, containerPort: 5672}]"),
		"\n---\nkind: NetworkPolicy\nmetadata: {name: some}\nspec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}\n")
	s.dialUntil(t, k, func() bool {
		for _, port := range []int32{8080, 8081, 5672} {
			if a := s.answers[place{"shop", "it", port}]; a.address != silent || a.loopback != open {
				return false
			}
		}
		return len(s.Dialled.Policed) > 0
	})
	if want := []string{"port 8080 of pod/it (networkpolicy/some)"}; !slices.Equal(s.Dialled.Policed, want) || s.Dialled.Ports != 3 {
		t.Errorf("%+v, want %q", s.Dialled, want)
	}
	if found := s.report(nil).Findings; len(found) > 0 {
		t.Errorf("found %+v", found)
	}
}

// Programs that hang do not take the time in which others are knocked at.
func TestManyPortsThatHang(t *testing.T) {
	t.Parallel()
	k := podServer(t, func(port string, conn io.ReadWriter, done <-chan bool) {
		if port != "9090" {
			<-done
		}
	})
	var ports []string
	for i := range dialAtOnce {
		ports = append(ports, fmt.Sprintf("{name: http-%d, containerPort: %d}", i, 8000+i))
	}
	s := load(t, dialledPod("ports: ["+strings.Join(ports, ", ")+", {containerPort: 9090}]"))
	s.dialUntil(t, k, func() bool { return s.answers[place{"shop", "it", 9090}].loopback == open })
	if s.Dialled.Ports+s.Dialled.Left != dialAtOnce+1 {
		t.Errorf("of %d ports: %+v", dialAtOnce+1, s.Dialled)
	}
}

// What may not be dialled is said; each way is tried until the first refusal alone, and with --no-dial none is.
func TestWhatMayNotBeDialled(t *testing.T) {
	const one = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"containers":[{"name":"app","ports":[{"containerPort":8080}]}]},"status":{"phase":"Running",
		"conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"name":"app","ready":true,"started":true,"state":{"running":{"startedAt":"2026-11-28T11:00:00Z"}}}]}}`
	dialled := func(o Options, denied ...string) (unread string, asked int, r *Report) {
		k, list := apiServer(t, map[string]string{"pods": one}, denied...)
		r, err := Run(t.Context(), k, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range r.Unread {
			unread += fmt.Sprint(u.Resource, u.Checks)
		}
		for _, path := range *list {
			if strings.Contains(path, "/pods/it") {
				asked++
			}
		}
		return unread, asked, r
	}
	if unread, asked, r := dialled(Options{}, "proxy", "portforward"); unread != "pods/portforward[ports]pods/proxy[]" || asked < 2 || r.Dialled.Ports != 0 || r.Dialled.Left != 1 {
		t.Errorf("without both rights: unread %s, %d requests, %+v", unread, asked, r.Dialled)
	}
	if unread, asked, r := dialled(Options{}); unread != "" || asked != 1 || r.Dialled.Ports != 1 || len(r.Findings) > 0 {
		t.Errorf("a pod that answers: unread %s, %d requests, %+v", unread, asked, r)
	}
	if unread, asked, r := dialled(Options{NoDial: true}); unread != "" || asked != 0 || r.Dialled != nil {
		t.Errorf("with NoDial: unread %s, %d requests, %+v", unread, asked, r.Dialled)
	}
	if _, asked, _ := dialled(Options{Targets: []Ref{{"pod", "shop", "it"}}}); asked != 1 {
		t.Errorf("about the pod: %d requests", asked)
	}
}

// Where a port is closed the program may listen at another one that nobody declares: at a number it is started with, or at one that is usual.
func TestWhereElseAProgramMayListen(t *testing.T) {
	const ports = "ports: [{containerPort: 8080}], command: [/app, '--listen=10.0.0.12:7001'], args: [serve, '9090,9091'], env: [{name: PORT, value: '3000'}, {name: RATIO, value: 70000x12}, {name: MEMORY, value: 512Mi}, {name: BACK, value: 'http://10.0.0.7:7002/x'}]"
	for name, c := range map[string]struct {
		pod    string
		answer answer
		want   string
	}{
		"closed":                        {dialledPod(ports), answer{loopback: closed, address: closed}, "[7001 9090 9091 3000 7002 80 443 4000 5000 8000 8081 8443 8888 9000]"},
		"closed, and more is not known": {dialledPod(ports), answer{loopback: closed, mayNot: true}, "[7001 9090 9091 3000 7002 80 443 4000 5000 8000 8081 8443 8888 9000]"},
		"open":                          {dialledPod(ports), answer{loopback: open, address: open}, "[]"},
		"on its loopback alone":         {dialledPod(ports), answer{loopback: open, address: closed}, "[]"},
		"it is not known":               {dialledPod(ports), answer{}, "[]"},
		"the node's network":            {dialledPod(ports), answer{loopback: closed, address: closed}, "[]"},
	} {
		s := load(t, c.pod)
		s.Pods[0].Spec.HostNetwork = name == "the node's network"
		asks, _ := s.asks(nil)
		var got []int32
		for _, a := range s.elsewhere(asks, []answer{c.answer}) {
			got = append(got, a.port)
		}
		if len(asks) != 1 || fmt.Sprint(got) != c.want {
			t.Errorf("%s: of %d asked: %v, want %s", name, len(asks), got, c.want)
		}
	}
}

// Of a workload's pods one tells where else its program listens.
func TestOnePodTellsWhereElse(t *testing.T) {
	one := dialledPod("ports: [{containerPort: 8080}]")
	s := load(t, owned(one), owned(strings.Replace(one, "name: it,", "name: it2,", 1)), orders)
	asks, _ := s.asks(nil)
	at := map[string]int{}
	for _, a := range s.elsewhere(asks, []answer{{loopback: closed, address: closed}, {loopback: closed, address: closed}}) {
		at[a.pod]++
	}
	if len(asks) != 2 || len(at) != 1 || at["it"] != len(usualPorts)-1 {
		t.Errorf("of %d asked, elsewhere: %v", len(asks), at)
	}
}
