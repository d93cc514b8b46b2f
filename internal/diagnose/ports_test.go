package diagnose

import (
	"fmt"
	"strings"
	"testing"
)

var notReady = strings.NewReplacer(`"True"`, `"False"`, "ready: true", "ready: false").Replace(running)

func TestPorts(t *testing.T) {
	both, neither, loopback, alone := answer{loopback: open, address: open}, answer{loopback: closed, address: closed}, answer{loopback: open, address: closed}, answer{loopback: closed, address: open}
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
