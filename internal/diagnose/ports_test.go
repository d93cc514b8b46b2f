package diagnose

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

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
		row("nobody listens, for nobody", declares, 8080, neither, "port-closed", "container app declares"),
		row("not on loopback, and more may not be asked", declares+service, 8080, answer{loopback: closed, mayNot: true}, "port-closed", "what the pod's address answers is not known"),
		row("nobody listens, as the kubelet says", asks("{httpGet: {port: http}}", notReady)+event("Pod/it", "Unhealthy", "Readiness probe failed: "+refused), 8080, neither, "probe-refused", ""),
		row("it starts", strings.Replace(declares, "T11:00:00Z", "T11:59:58Z", 1), 8080, neither, "port-closed", "it may be still starting"),
		row("TLS", asks("{tcpSocket: {port: 8080}}", running), 8080, answer{loopback: open, address: open, tls: true}, "probe-tls", "scheme: HTTPS"),
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
	one := strings.Replace(withPod(ports, "", running), "phase: Pending", "phase: Running", 1)
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
		documents := []string{strings.Replace(withPod(c.container, "", running), "phase: Pending", "phase: Running", 1)}
		if c.service != "" {
			documents = append(documents, aService(c.service))
		}
		asks, _ := load(t, documents...).asks(nil)
		if len(asks) != 1 || asks[0].port != 8080 || asks[0].http != c.asked {
			t.Errorf("%s: %+v", name, asks)
		}
	}
}

// An address from which nothing comes is silent; one for which there was no time is not known.
func TestAnAddressThatGivesNothing(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/proxy") {
			<-r.Context().Done()
			return
		}
		w.WriteHeader(http.StatusForbidden)
	}))
	defer server.Close()
	k, err := kube.NewForConfig(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for ctx, want := range map[context.Context]reply{t.Context(): silent, short: unknown} {
		for _, web := range []bool{false, true} {
			a := ask{place: place{"shop", "it", 8080}, http: web}.dial(ctx, k, new(mayDial))
			if a.address != want || a.loopback != unknown || a.mayNot {
				t.Errorf("%+v, want %d", a, want)
			}
		}
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
