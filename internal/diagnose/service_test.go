package diagnose

import (
	"slices"
	"strings"
	"testing"
)

func aService(spec string) string {
	return "\n---\nkind: Service\nmetadata: {name: it}\nspec: {" + spec + "}\n"
}

func TestServicesThatLeadNowhere(t *testing.T) {
	good := withPod("ports: [{name: http, containerPort: 8080}]", "", running)
	deployment := func(replicas string) string {
		return "\n---\nkind: Deployment\nmetadata: {name: orders}\nspec: {replicas: " + replicas + ", selector: {matchLabels: {app: it}}, template: {metadata: {labels: {app: it}}, spec: {containers: [{name: app, image: x}]}}}\n"
	}
	daemonSet := func(nodes string) string {
		return "\n---\nkind: DaemonSet\nmetadata: {name: agent}\nspec: {selector: {matchLabels: {app: it}}, template: {metadata: {labels: {app: it}}, spec: {containers: [{name: app, image: x}]}}}\nstatus: {currentNumberScheduled: " + nodes + ", desiredNumberScheduled: " + nodes + ", numberMisscheduled: 0, numberReady: 0}\n"
	}
	const (
		refused = "\n---\nkind: Port\nport: 80\nloopback: 2\naddress: 2\n"
		aSlice  = "\n---\nkind: EndpointSlice\nmetadata: {name: it, labels: {kubernetes.io/service-name: it}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\n"
	)
	headless := aService("clusterIP: None, selector: {app: it}, ports: [{name: web, port: 80, targetPort: http}]")
	anIngress := func(port string) string {
		return "\n---\nkind: Ingress\nmetadata: {name: it}\nspec: {defaultBackend: {service: {name: it, port: {" + port + "}}}}\n"
	}
	severities := func(documents string, want ...Severity) {
		t.Helper()
		var got []Severity
		for _, f := range load(t, documents).report(nil).Findings {
			got = append(got, f.Severity)
		}
		if !slices.Equal(got, want) {
			t.Errorf("severities %q, want %q, of:\n%s", got, want, documents)
		}
	}
	severities(good+aService("selector: {app: it}, ports: [{port: 80, targetPort: 8080, protocol: UDP}]"), Warning)
	severities(good+aService("selector: {app: it}, ports: [{port: 80, targetPort: http, protocol: UDP}]"), Problem)
	severities(aService("ports: [{port: 80}]"), Problem)
	severities(aService("clusterIP: None, ports: [{port: 80}]"), Warning)
	severities(deployment("0")+aService("selector: {app: it}, ports: [{port: 80}]")+"\n---\nkind: Ingress\nmetadata: {name: it}\nspec: {defaultBackend: {service: {name: it, port: {number: 80}}}}\n", Warning)
	second := strings.NewReplacer("name: it,", "name: it2,", "u1", "u2", `type: Ready, status: "True"`, `type: Ready, status: "False"`).Replace(good)
	published := load(t, good, second, aService("selector: {app: it}, publishNotReadyAddresses: true, ports: [{port: 80, targetPort: http}]")).report(nil).Findings
	if len(published) != 1 || len(published[0].Symptoms) > 0 {
		t.Errorf("a pod that gets its traffic all the same: %+v", published)
	}
	try(t, []tried{
		{"it leads there", good + aService("selector: {app: it}, ports: [{port: 80, targetPort: http}]"), "", ""},
		{"another value", good + aService("selector: {app: ti}, ports: [{port: 80, targetPort: http}]"), "service-selector-mismatch", "-app=ti +app=it"},
		{"another key", good + aService("selector: {ap: it}, ports: [{port: 80, targetPort: http}]"), "service-selector-mismatch", "-ap=it +app=it"},
		{"one label too many", good + aService("selector: {app: it, tier: web}, ports: [{port: 80, targetPort: http}]"), "service-selector-mismatch", "-tier=web"},
		{"a key alone", good + aService("selector: {app: payments}, ports: [{port: 80}]"), "service-no-pods", "kubectl get pods --show-labels"},
		{"one that has failed", strings.Replace(withPod("", "", "reason: DeadlineExceeded"), "phase: Pending", "phase: Failed", 1) + aService("selector: {app: ti}, ports: [{port: 80}]"), "service-no-pods pod-failed", "no pod in shop has the labels"},
		{"one that has failed, and has its labels", strings.Replace(withPod("", "", ""), "phase: Pending", "phase: Succeeded", 1) + aService("selector: {app: it}, ports: [{port: 80}]"), "service-no-pods", "the only pods that it selects have ended: pod/it"},
		{"a DaemonSet without nodes", daemonSet("0") + aService("selector: {app: it}, ports: [{port: 80}]"), "service-scaled-to-zero", "no node is one of daemonset/agent"},
		{"a DaemonSet without pods", daemonSet("2") + aService("selector: {app: it}, ports: [{port: 80}]"), "service-no-pods", "those of daemonset/agent"},
		{"nobody at all", good + aService("selector: {role: db}, ports: [{port: 80}]"), "service-no-pods", "kubectl get pods --show-labels -n shop"},
		{"scaled to 0", deployment("0") + aService("selector: {app: it}, ports: [{port: 80}]"), "service-scaled-to-zero", "kubectl scale deployment/orders --replicas 1 -n shop"},
		{"its workload has no pods", deployment("2") + aService("selector: {app: it}, ports: [{port: 80}]"), "service-no-pods", "those of deployment/orders"},
		{"headless, at another port", good + headless + refused, "service-headless-port", "set port: 8080"},
		{"headless, and its target answers", good + headless + refused + "\n---\nkind: Port\nport: 8080\naddress: 1\n", "service-headless-port", "its port 80/TCP is 8080 in its pods"},
		{"headless, and nothing was dialled", good + headless, "", ""},
		{"headless, and its port is not told by its address", good + headless + "\n---\nkind: Port\nport: 80\nloopback: 2\nmayNot: true\n", "", ""},
		{"headless, at the same", good + aService("clusterIP: None, selector: {app: it}, ports: [{port: 8080, targetPort: http}]"), "", ""},
		{"headless, and something listens there", good + headless + "\n---\nkind: Port\nport: 80\naddress: 1\n", "", ""},
		{"headless, for an Ingress by the port's name", good + headless + refused + aSlice + anIngress("name: web"), "", ""},
		{"headless, for an Ingress by the port's number", good + headless + refused + aSlice + anIngress("number: 80"), "", ""},
		{"headless, and an Ingress has another port", good + strings.Replace(headless, "ports: [", "ports: [{name: same, port: 8080}, ", 1) + refused + aSlice + anIngress("number: 8080"), "service-headless-port", ""},
		{"headless, of both protocols", strings.Replace(good, "containerPort: 8080}", "containerPort: 8080}, {name: dns, containerPort: 8080, protocol: UDP}", 1) + strings.Replace(headless, "ports: [", "ports: [{name: dns, port: 80, targetPort: dns, protocol: UDP}, ", 1) + refused, "service-headless-port", "80/TCP"},
		{"headless, while it starts", strings.NewReplacer(`"True"`, `"False"`, "ready: true", "ready: false", "T11:00:00Z", "T11:59:58Z").Replace(good) + headless + refused, "pod-not-ready", ""},
		{"headless, to no port at all", good + aService("clusterIP: None, selector: {app: it}, ports: [{port: 80, targetPort: htpp}]"), "service-port-name-absent", ""},
		{"no such port", good + aService("selector: {app: it}, ports: [{port: 80, targetPort: htpp}]"), "service-port-name-absent", "set targetPort: http"},
		{"a port nobody declares", good + aService("selector: {app: it}, ports: [{port: 80}]"), "service-port-undeclared", "declare only http:8080/TCP"},
		{"a port nobody declares, which a probe asks", strings.Replace(good, "containers: [", "initContainers: [{name: side, image: x, restartPolicy: Always, readinessProbe: {tcpSocket: {port: 80}}}]\n  containers: [", 1) + "  initContainerStatuses: [{name: side, ready: true, started: true, restartCount: 0, image: '', imageID: '', state: {running: {startedAt: '2026-11-28T11:00:00Z'}}}]\n" + aService("selector: {app: it}, ports: [{port: 80}]"), "", ""},
		{"a port nobody declares, which a probe will ask", strings.NewReplacer("}]}]", "}], livenessProbe: {tcpSocket: {port: 80}, initialDelaySeconds: 7200}}]").Replace(good) + aService("selector: {app: it}, ports: [{port: 80}]"), "service-port-undeclared", ""},
		{"no load balancer", good + aService("type: LoadBalancer, selector: {app: it}, ports: [{port: 80, targetPort: http}]"), "service-no-address", "NodePort"},
		{"a load balancer that is made", good + strings.Replace(aService("type: LoadBalancer, selector: {app: it}, ports: [{port: 80, targetPort: http}]"), "name: it}", "name: it, creationTimestamp: '2026-11-28T11:55:00Z'}", 1), "", ""},
		{"a port that is closed in one of two pods", good + "\n---\n" + strings.NewReplacer("name: it,", "name: other,", "u1", "u2", "containerPort: 8080", "containerPort: 9090").Replace(good) + aService("selector: {app: it}, ports: [{port: 80, targetPort: 8080}]") +
			"\n---\nkind: Port\nport: 8080\naddress: 1\n\n---\nkind: Port\npod: other\nport: 8080\nloopback: 2\naddress: 2\n\n---\nkind: Port\npod: other\nport: 9090\naddress: 1\n", "service-port-closed", "nothing listens in 1 of its 2 pods at least: pod/other"},
		{"a port where none is declared", withPod("", "", running) + aService("selector: {app: it}, ports: [{port: 80}]"), "", ""},
		{"another protocol", good + aService("selector: {app: it}, ports: [{port: 80, targetPort: 8080, protocol: UDP}]"), "service-protocol", "set protocol: TCP"},
		{"pods that are not ready", strings.Replace(good, `type: Ready, status: "True"`, `type: Ready, status: "False"`, 1) + aService("selector: {app: it}, ports: [{port: 80, targetPort: http}]"), "pod-not-ready", ""},
		{"... that are published all the same", strings.Replace(good, `type: Ready, status: "True"`, `type: Ready, status: "False"`, 1) + aService("selector: {app: it}, publishNotReadyAddresses: true, ports: [{port: 80, targetPort: http}]"), "pod-not-ready", ""},
		{"no selector", aService("ports: [{port: 80}]"), "service-no-selector", "kubernetes.io/service-name: it"},
		{"no selector, and endpoints", aService("ports: [{port: 80}]") + "\n---\nkind: EndpointSlice\nmetadata: {name: it, labels: {kubernetes.io/service-name: it}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\n", "", ""},
		{"no selector, and endpoints of another name", aService("ports: [{name: http, port: 80}]") + "\n---\nkind: EndpointSlice\nmetadata: {name: it, labels: {kubernetes.io/service-name: it}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\nports: [{name: web, port: 80}]\n", "service-port-name-absent", "give the port the same name in both"},
		{"no selector, and endpoints of its name", aService("ports: [{name: http, port: 80}]") + "\n---\nkind: EndpointSlice\nmetadata: {name: it, labels: {kubernetes.io/service-name: it}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\nports: [{name: http, port: 80}]\n", "", ""},
		{"a named port that one of two pods has", withPod("ports: [{name: http, containerPort: 80}]", "", running) + "\n---\n" + strings.NewReplacer("name: it,", "name: other,", "uid: u1", "uid: u2").Replace(withPod("ports: [{name: web, containerPort: 80}]", "", running)) + aService("selector: {app: it}, ports: [{port: 80, targetPort: http}]"), "service-port-name-absent", "1 of its 2 pods do not have, and these get nothing: pod/other"},
		{"a StatefulSet without its Service", "kind: StatefulSet\nmetadata: {name: db}\nspec: {serviceName: dbs, replicas: 0, selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: []}}}\n", "statefulset-service-absent", "service/dbs, which is to give its pods their names"},
		{"an external name", aService("type: ExternalName, externalName: example.test"), "", ""},
		{"an external address", aService("type: ExternalName, externalName: 10.1.2.3"), "service-external-name", "is an address"},
		{"an external name in here", aService("type: ExternalName, externalName: orders.shop.svc.cluster.local"), "service-external-name", "service/orders, which does not exist in shop"},
	})
}

// A Service selects in its own namespace: where all are looked at, the pods that it may be meant for are named.
func TestAServiceInAnotherNamespace(t *testing.T) {
	s := load(t, strings.Replace(withPod("", "", running), "name: it,", "name: it, namespace: elsewhere,", 1), aService("selector: {app: it}, ports: [{port: 80}]"))
	s.Namespace = ""
	found := s.report(nil).Findings
	if len(found) != 1 || found[0].ID != "service-no-pods" || !strings.Contains(found[0].Summary, "pod/it in elsewhere has them, and a Service selects in its own namespace") {
		t.Errorf("%+v", found)
	}
}

func TestIngressesThatLeadNowhere(t *testing.T) {
	ingress := func(service string) string {
		return "\n---\nkind: Ingress\nmetadata: {name: it}\nspec: {rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: " + service + "}}]}}]}\n"
	}
	good := withPod("ports: [{name: http, containerPort: 8080}]", "", running) + aService("selector: {app: it}, ports: [{name: web, port: 80, targetPort: http}]") +
		"\n---\nkind: EndpointSlice\nmetadata: {name: it, labels: {kubernetes.io/service-name: it}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\n"
	try(t, []tried{
		{"it leads there", good + ingress("{name: it, port: {number: 80}}"), "", ""},
		{"... by name", good + ingress("{name: it, port: {name: web}}"), "", ""},
		{"an annotation's action", good + ingress("{name: redirect, port: {name: use-annotation}}"), "", ""},
		{"no Service", good + ingress("{name: its, port: {number: 80}}"), "ingress-service-absent", "if it is meant"},
		{"no port", good + ingress("{name: it, port: {number: 8080}}"), "ingress-port-absent", "which has only web:80"},
		{"no class", good + strings.Replace(ingress("{name: it, port: {number: 80}}"), "spec: {", "spec: {ingressClassName: ngnix, ", 1) + "\n---\nkind: IngressClass\nmetadata: {name: nginx}\n", "ingress-class-absent", "if nginx is meant"},
		{"a class", good + strings.Replace(ingress("{name: it, port: {number: 80}}"), "spec: {", "spec: {ingressClassName: nginx, ", 1) + "\n---\nkind: IngressClass\nmetadata: {name: nginx}\n", "", ""},
		{"none", good + ingress("{name: it, port: {number: 80}}") + "\n---\nkind: IngressClass\nmetadata: {name: nginx}\n", "ingress-class-absent", "set spec.ingressClassName to one that there is"},
		{"none, and a controller took it", good + strings.TrimSpace(ingress("{name: it, port: {number: 80}}")) + "\nstatus: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n---\nkind: IngressClass\nmetadata: {name: nginx}\n", "", ""},
		{"none, a moment ago", good + strings.Replace(ingress("{name: it, port: {number: 80}}"), "name: it}", "name: it, creationTimestamp: '2026-11-28T11:59:30Z'}", 1) + "\n---\nkind: IngressClass\nmetadata: {name: nginx}\n", "", ""},
		{"none, and a controller holds it", good + strings.Replace(ingress("{name: it, port: {number: 80}}"), "name: it}", "name: it, finalizers: [networking.gke.io/ingress-finalizer-V2]}", 1) + "\n---\nkind: IngressClass\nmetadata: {name: nginx}\n", "", ""},
		{"none, and a controller has told of it", good + ingress("{name: it, port: {number: 80}}") + "\n---\nkind: Event\nmetadata: {name: it}\ninvolvedObject: {kind: Ingress, namespace: shop, name: it}\nreason: Sync\n---\nkind: IngressClass\nmetadata: {name: nginx}\n", "", ""},
		{"none, as it was written once", good + strings.Replace(ingress("{name: it, port: {number: 80}}"), "name: it}", "name: it, annotations: {kubernetes.io/ingress.class: nginx}}", 1) + "\n---\nkind: IngressClass\nmetadata: {name: nginx}\n", "", ""},
		{"no certificate", good + strings.Replace(ingress("{name: it, port: {number: 80}}"), "spec: {", "spec: {tls: [{secretName: cert}], ", 1), "ingress-certificate-absent", "kubectl create secret tls cert --cert FILE --key FILE -n shop"},
		{"a Service that leads nowhere is the cause", strings.Replace(good, "selector: {app: it}", "selector: {app: ti}", 1)[:strings.Index(good, "\n---\nkind: EndpointSlice")] + ingress("{name: it, port: {number: 80}}"), "service-selector-mismatch", ""},
	})
}

func TestPoliciesThatLetNobodyIn(t *testing.T) {
	good := withPod("ports: [{name: http, containerPort: 8080}]", "", running) + aService("selector: {app: it}, ports: [{port: 80, targetPort: http}]")
	policy := func(name, spec string) string {
		return "\n---\nkind: NetworkPolicy\nmetadata: {name: " + name + "}\nspec: {" + spec + "}\n"
	}
	closed := policy("closed", "podSelector: {}, policyTypes: [Ingress]")
	dns := "\n---\nkind: Service\nmetadata: {name: dns}\nspec: {selector: {app: frontend}, clusterIP: None, ports: [{port: 53, targetPort: 5300, protocol: UDP}]}\n"
	monitoring := "\n---\nkind: Namespace\nmetadata: {name: monitoring, labels: {kubernetes.io/metadata.name: monitoring}}\n"
	frontend := "\n---\n" + strings.NewReplacer("name: it,", "name: web,", "app: it", "app: frontend").Replace(withPod("", "", running))
	try(t, []tried{
		{"closed", good + closed, "networkpolicy-denies", "networkpolicy/closed"},
		{"closed, and another lets in", good + closed + policy("open", "podSelector: {matchLabels: {app: it}}, policyTypes: [Ingress], ingress: [{ports: [{port: http}]}]"), "", ""},
		{"... to the Service's port", good + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]"), "networkpolicy-denies", "write 8080 in its place: kubectl edit networkpolicy open -n shop"},
		{"... to a range with the Service's port", good + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 80, endPort: 99}]}]"), "networkpolicy-denies", "add a policy that lets callers in on port 8080"},
		{"... to the Service's port, which the pod has, too", strings.Replace(good, "containerPort: 8080}", "containerPort: 8080}, {containerPort: 80}", 1) + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]"), "networkpolicy-denies", "add a policy that lets callers in on port 8080"},
		{"... to another port", good + closed + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 9090, endPort: 9099}]}]"), "networkpolicy-denies", "port 8080/TCP"},
		{"for others", good + policy("closed", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]"), "", ""},
		{"closed, and it was dialled", good + closed + "\n---\nkind: Port\nport: 8080\nloopback: 1\naddress: 3\n", "networkpolicy-denies", ""},
		{"a caller's name is misspelt", good + frontend + policy("open", "podSelector: {matchLabels: {app: it}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: frontned}}}]}]"), "networkpolicy-selector-mismatch", "spec.ingress[0].from[0].podSelector selects no pod; nearest is pod/web, whose labels differ: -app=frontned +app=frontend"},
		{"... that is of another namespace", good + policy("open", "podSelector: {matchLabels: {app: it}}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: itt}}}]}]"), "", ""},
		{"a caller that there is none of", good + policy("open", "podSelector: {matchLabels: {app: it}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: nightly}}}]}]"), "", ""},
		{"a caller that is not installed, beside one of such a name", good + strings.Replace(frontend, "app: frontend", "app: orders-web", 1) + policy("open", "podSelector: {matchLabels: {app: it}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: orders-api}}}]}]"), "", ""},
		{"... of such a number", good + strings.Replace(frontend, "app: frontend", "app: shard-2", 1) + policy("open", "podSelector: {matchLabels: {app: it}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: shard-1}}}]}]"), "", ""},
		{"a caller that is scaled to 0", good + frontend + "\n---\nkind: Deployment\nmetadata: {name: frontends}\nspec: {replicas: 0, selector: {}, template: {metadata: {labels: {app: frontends}}, spec: {containers: [{name: app, image: x}]}}}\n" +
			policy("open", "podSelector: {matchLabels: {app: it}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: frontends}}}]}]"), "", ""},
		{"it is about nobody", strings.Replace(good, "app: it}", "app: orders}", 1) + policy("open", "podSelector: {matchLabels: {app: ordres}}, policyTypes: [Ingress]"), "service-no-pods networkpolicy-selector-mismatch", ""},
		{"too short to be misspelt", strings.Replace(good, "app: it}", "app: it, of: v1}", 1) + policy("open", "podSelector: {matchLabels: {of: v2}}, policyTypes: [Ingress]"), "", ""},
		{"DNS by TCP alone", good + policy("out", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53}]}]"), "networkpolicy-no-dns", "53/UDP"},
		{"calls without DNS", good + policy("out", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]"), "networkpolicy-no-dns", "port 53"},
		{"calls with DNS", good + policy("out", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}, {ports: [{port: 53, protocol: UDP}]}]"), "", ""},
		{"calls to pods of the namespace alone", good + frontend + policy("out", "podSelector: {matchLabels: {app: it}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: frontend}}}]}]"), "networkpolicy-no-dns", "for pods of its own namespace alone, none of which is a DNS server: networkpolicy/out"},
		{"... where DNS has a Service", good + frontend + dns + policy("out", "podSelector: {matchLabels: {app: it}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: frontend}}}]}]"), "", ""},
		{"... at the pod's port", good + frontend + dns + policy("out", "podSelector: {matchLabels: {app: it}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: frontend}}}], ports: [{port: 5300, protocol: UDP}]}]"), "", ""},
		{"... at the Service's", good + frontend + dns + policy("out", "podSelector: {matchLabels: {app: it}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: frontend}}}], ports: [{port: 53, protocol: UDP}]}]"), "networkpolicy-no-dns", "none of which is a DNS server"},
		{"... and servers of its own are asked", strings.Replace(good, "spec:", "spec:\n  dnsPolicy: None\n  dnsConfig: {nameservers: [10.0.0.2]}", 1) + frontend + policy("out", "podSelector: {matchLabels: {app: it}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: frontend}}}]}]"), "", ""},
		{"... and the node's servers are asked", strings.Replace(good, "spec:", "spec:\n  dnsPolicy: Default", 1) + frontend + policy("out", "podSelector: {matchLabels: {app: it}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: frontend}}}]}]"), "", ""},
		{"... and one that is in the pod", strings.Replace(good, "spec:", "spec:\n  dnsPolicy: None\n  dnsConfig: {nameservers: [127.0.0.1]}", 1) + policy("out", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]"), "", ""},
		{"... by OpenShift's port", good + policy("out", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: 5353, protocol: UDP}]}]"), "", ""},
		{"... where DNS is", good + strings.Replace(frontend, "name: app,", "name: app, ports: [{containerPort: 53, protocol: UDP}],", 1) + policy("out", "podSelector: {matchLabels: {app: it}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: frontend}}}]}]"), "", ""},
		{"... and of others", good + frontend + policy("out", "podSelector: {matchLabels: {app: it}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: frontend}}}, {namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}]"), "", ""},
		{"... or addresses", good + frontend + policy("out", "podSelector: {matchLabels: {app: it}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]"), "", ""},
		{"a namespace's name by a label that it has not", good + monitoring + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {name: monitoring}}}]}]"), "networkpolicy-selector-mismatch", "namespaceSelector selects no namespace; nearest is namespace/monitoring, whose labels differ: -name=monitoring"},
		{"a namespace that is misspelt", good + monitoring + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitorng}}, podSelector: {}}]}]"), "networkpolicy-selector-mismatch", "+kubernetes.io/metadata.name=monitoring"},
		{"a namespace", good + monitoring + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]}]"), "", ""},
		{"... by its label", good + monitoring + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {name: monitoring}}}]}]"), "networkpolicy-selector-mismatch", "select it by kubernetes.io/metadata.name: monitoring, a label that each namespace has"},
		{"... or that", good + monitoring + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {name: monitoring}}}, {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]}]"), "", ""},
		{"a label without a value, which none has", good + monitoring + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {example.com/ingress: \"\"}}}, {podSelector: {matchLabels: {example.com/caller: \"\"}}}]}]"), "", ""},
		{"a namespace that there is none of", good + monitoring + policy("open", "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: billing}}}]}]"), "", ""},
		{"no calls at all", good + policy("out", "podSelector: {}, policyTypes: [Egress]"), "", ""},
	})
}

// What a selector misses is told of the workload, and its labels are the pod's.
func TestWhatASelectorMisses(t *testing.T) {
	const set = "\n---\nkind: StatefulSet\nmetadata: {name: orders}\nspec: {replicas: 1, serviceName: '', selector: {matchLabels: {app: orders}}, template: {metadata: {labels: {app: orders}}, spec: {containers: [{name: app, image: x}]}}}\nstatus: {replicas: 1, readyReplicas: 1}\n"
	pod := strings.NewReplacer("uid: u1", "uid: u1, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: orders, uid: '', controller: true}]", "app: it", "app: orders").Replace(withPod("", "", running))
	budget := "\n---\nkind: PodDisruptionBudget\nmetadata: {name: it}\nspec: {selector: {matchLabels: {app: ordres}}}\n"
	found := load(t, pod+set+budget).report(nil).Findings
	if len(found) != 1 || !strings.Contains(found[0].Summary, "nearest is statefulset/orders,") || len(found[0].State) != 2 || found[0].State[1] != (Evidence{From: "pod/it metadata.labels", Says: "app=orders"}) {
		t.Errorf("%+v", found)
	}
	for name, documents := range map[string]string{
		"an operator's":  strings.Replace(budget, "name: it}", "name: it, ownerReferences: [{apiVersion: example.com/v1, kind: Shop, name: shop, uid: '', controller: true}]}", 1),
		"by expressions": strings.Replace(budget, "matchLabels: {app: ordres}", "matchExpressions: [{key: app, operator: In, values: [ordres]}]", 1),
	} {
		if found := load(t, pod+set+documents).report(nil).Findings; len(found) > 0 {
			t.Errorf("%s: %+v", name, found)
		}
	}
	for _, r := range makers {
		s := load(t, pod+set+budget)
		s.Unread = []Unread{{Resource: string(r), Why: mayNot}}
		if found := s.report(nil).Findings; len(found) > 0 {
			t.Errorf("where %s may make them: %+v", r, found)
		}
	}
	s := load(t, pod+set+budget+"\n---\nkind: ReplicationController\nmetadata: {name: ordres}\nspec: {replicas: 0, template: {metadata: {labels: {app: ordres}}}}\n")
	if found := s.report(nil).Findings; len(found) > 0 {
		t.Errorf("where a ReplicationController makes them: %+v", found)
	}
}

// A port that answers in its pod alone is noted where a policy keeps some out, and is no finding: that may be meant so.
func TestPortsThatAPolicyKeepsTheAPIServerFrom(t *testing.T) {
	good := withPod("ports: [{name: http, containerPort: 8080}]", "", running)
	policy := func(spec string) string {
		return "\n---\nkind: NetworkPolicy\nmetadata: {name: some}\nspec: {podSelector: {matchLabels: {app: it}}, policyTypes: [Ingress], ingress: [" + spec + "]}\n"
	}
	at := place{"shop", "it", 8080}
	kept := answer{loopback: open, address: silent, prompt: true}
	for name, c := range map[string]struct {
		documents string
		a         answer
		want      string
	}{
		"some":             {good + policy("{from: [{podSelector: {}}], ports: [{port: http}]}"), kept, "; the API server may be kept from port 8080 of pod/it (networkpolicy/some)"},
		"nobody there":     {good + policy("{ports: [{port: 9090}]}"), kept, "; the API server may be kept from port 8080 of pod/it (networkpolicy/some)"},
		"everybody":        {good + policy("{ports: [{port: http}]}"), kept, ""},
		"no policy":        {good, kept, ""},
		"the node's own":   {strings.Replace(good, "spec:", "spec:\n  hostNetwork: true", 1) + policy(""), kept, ""},
		"it is not silent": {good + policy(""), answer{loopback: open, prompt: true}, ""},
		"it is slow":       {good + policy(""), answer{loopback: open, address: silent}, ""},
	} {
		var d Dialled
		d.policed(load(t, c.documents), at, c.a)
		if got := strings.TrimPrefix(d.String(), "dialled 0 ports of 0 pods in 0.0s"); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
