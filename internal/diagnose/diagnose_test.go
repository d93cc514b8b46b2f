package diagnose

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// owned is a pod of a Deployment by way of a ReplicaSet, which are there too.
func owned(pod string) string {
	const by = "ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: orders-1, uid: r1, controller: true}], "
	return strings.Replace(pod, "metadata: {", "metadata: {"+by, 1)
}

const orders = `
---
kind: Deployment
metadata: {name: orders}
spec: {selector: {matchLabels: {app: it}}, template: {metadata: {labels: {app: it}}, spec: {containers: [{name: app, image: x}]}}}
status: {conditions: [{type: Progressing, status: "False", reason: ProgressDeadlineExceeded, message: m}]}
---
kind: ReplicaSet
metadata: {name: orders-1, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: orders, uid: d1, controller: true}]}
spec: {selector: {matchLabels: {app: it}}, template: {metadata: {labels: {app: it}}, spec: {containers: [{name: app, image: x}]}}}
status: {replicas: 1}
`

func ids(found []Finding) (out []string) {
	for _, f := range found {
		out = append(out, f.ID)
	}
	return out
}

// What a fault brings about stands behind it, over several steps, and is not told beside it.
func TestSymptomsStandBehindTheirCause(t *testing.T) {
	absent := owned(withPod("ports: [{name: http, containerPort: 8080}]", "", waits("ErrImagePull", "manifest unknown")))
	second := strings.NewReplacer("name: it,", "name: it2,", "u1", "u2").Replace(absent)
	s := load(t, absent, second, orders, aService("selector: {app: it}, ports: [{port: 80, targetPort: http}]"),
		"\n---\nkind: Ingress\nmetadata: {name: it}\nspec: {defaultBackend: {service: {name: it, port: {number: 80}}}}\n")
	found := s.report(nil).Findings
	if len(found) != 1 || found[0].ID != "image-not-found" {
		t.Fatalf("found %q", ids(found))
	}
	f := found[0]
	if f.Owner != (Ref{"deployment", "shop", "orders"}) || len(f.Also) != 1 || f.Also[0].Name != "it2" {
		t.Errorf("it is about %v and %v of %v: the two pods of one workload are one finding", f.Object, f.Also, f.Owner)
	}
	if got := ids(f.Symptoms); !slices.Equal(got, []string{"ingress-no-endpoints", "service-pods-not-ready", "rollout-stuck"}) {
		t.Errorf("behind it are %q", got)
	}
}

// Two faults that have nothing to do with each other are two findings, and the graver comes first.
func TestTwoFaults(t *testing.T) {
	s := load(t, owned(withPod("", "", ended("reason: Error, exitCode: 3"))), orders, aService("type: ExternalName, externalName: 10.1.2.3"),
		"\n---\nkind: NetworkPolicy\nmetadata: {name: out}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]}\n")
	if got := ids(s.report(nil).Findings); !slices.Equal(got, []string{"program-exits", "service-external-name", "networkpolicy-no-dns"}) {
		t.Errorf("found %q", got)
	}
	if got := ids(s.report([]Ref{{"deployment", "shop", "orders"}}).Findings); !slices.Equal(got, []string{"program-exits", "networkpolicy-no-dns"}) {
		t.Errorf("about the deployment it found %q", got)
	}
	if got := ids(s.report([]Ref{{"service", "shop", "it"}}).Findings); !slices.Equal(got, []string{"service-external-name"}) {
		t.Errorf("about the service it found %q", got)
	}
}

// A report about something has what that stands on and what stands behind it.
func TestAround(t *testing.T) {
	s := load(t, owned(withPod("", "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]", running)), orders, aService("selector: {app: it}, ports: [{port: 80}]"),
		"\n---\nkind: Pod\nmetadata: {name: other, labels: {app: other}}\nspec: {nodeName: node2, containers: [{name: app, image: x}]}\n")
	want := []string{"pod/it", "replicaset/orders-1", "deployment/orders", "service/it", "node/node1", "persistentvolumeclaim/data"}
	for _, from := range []Ref{{"deployment", "shop", "orders"}, {"pod", "shop", "it"}, {"service", "shop", "it"}, {"persistentvolumeclaim", "shop", "data"}} {
		near := s.around([]Ref{from})
		var got []string
		for r := range near {
			got = append(got, r.String())
		}
		slices.Sort(got)
		if sorted := slices.Sorted(slices.Values(want)); !slices.Equal(got, sorted) {
			t.Errorf("around %s are %q, want %q", from, got, sorted)
		}
	}
}

// An Ingress is looked at with its Services, and not with the other Ingresses that have them.
func TestAroundAnIngress(t *testing.T) {
	ingress := func(name string) string {
		return "\n---\nkind: Ingress\nmetadata: {name: " + name + "}\nspec: {defaultBackend: {service: {name: it, port: {number: 80}}}}\n"
	}
	s := load(t, withPod("", "", running), aService("selector: {app: it}, ports: [{port: 80}]"), ingress("one"), ingress("two"))
	near := s.around([]Ref{{"ingress", "shop", "one"}})
	if !near[Ref{"service", "shop", "it"}] || near[Ref{"ingress", "shop", "two"}] {
		t.Errorf("%v", near)
	}
	if near := s.around([]Ref{{"service", "shop", "it"}}); !near[Ref{"ingress", "shop", "one"}] || !near[Ref{"ingress", "shop", "two"}] {
		t.Errorf("%v", near)
	}
}

// Who makes something may be of a kind of its own that is called as one of Kubernetes' is, or say that it made itself.
func TestMakersWithTheSameName(t *testing.T) {
	for _, group := range []string{"example.test/v1", "apps/v1"} {
		s := load(t, owned(withPod("", "", ended("reason: Error, exitCode: 3"))), strings.Replace(orders, "metadata: {name: orders}", "metadata: {name: orders, ownerReferences: [{apiVersion: "+group+", kind: Deployment, name: orders, uid: x1, controller: true}]}", 1),
			strings.NewReplacer("name: orders-1,", "name: circle,", "kind: Deployment, name: orders,", "kind: ReplicaSet, name: circle,").Replace(orders[strings.Index(orders, "\n---\nkind: ReplicaSet"):]),
			strings.NewReplacer("name: it,", "name: it2,", "name: orders-1,", "name: circle,").Replace(owned(withPod("", "", running))))
		for _, target := range [][]Ref{nil, {{"deployment", "shop", "orders"}}, {{"pod", "shop", "it2"}}} {
			found := s.report(target).Findings
			if got := ids(found); target == nil && !slices.Equal(got, []string{"program-exits"}) || len(got) > 0 && found[0].Owner != (Ref{"deployment", "shop", "orders"}) {
				t.Errorf("%s, about %v: found %+v", group, target, found)
			}
		}
	}
}

// What a check may stand behind has a name in the table, and no check stands behind itself by way of others.
func TestTheTableHasNoCircles(t *testing.T) {
	behind := map[string][]string{}
	for _, c := range checks() {
		if _, twice := behind[c.name]; twice {
			t.Errorf("%s is there twice", c.name)
		}
		behind[c.name] = c.behind
	}
	var walk func(name string, path []string)
	walk = func(name string, path []string) {
		if _, there := behind[name]; !there {
			t.Fatalf("%q is no check", name)
		}
		if slices.Contains(path, name) {
			t.Fatalf("a circle: %q", append(path, name))
		}
		for _, next := range behind[name] {
			walk(next, append(path, name))
		}
	}
	for name := range behind {
		walk(name, nil)
	}
}

func TestParseTarget(t *testing.T) {
	for arg, want := range map[string]Ref{
		"deploy/orders":  {"deployment", "shop", "orders"},
		"pvc/data":       {"persistentvolumeclaim", "shop", "data"},
		"no/node1":       {"node", "", "node1"},
		"ing/web":        {"ingress", "shop", "web"},
		"hpa/web":        {"horizontalpodautoscaler", "shop", "web"},
		"jobs.batch/one": {"job", "shop", "one"},
		"orders-0":       {"pod", "shop", "orders-0"},
	} {
		if got, err := ParseTarget(arg, "shop"); err != nil || got != want {
			t.Errorf("%s: %v, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"frob/x", "job/", "pvc/a/b"} {
		if _, err := ParseTarget(arg, "shop"); hint.CodeOf(err) != hint.Usage {
			t.Errorf("%s: %v", arg, err)
		}
	}
}

// unavailable is what the API server says of a kind whose own server is away.
const unavailable = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"ServiceUnavailable","code":503,"message":"the server is currently unable to handle the request"}`

// apiServer answers lists with the objects, of which those behind a | are for the next time, or with a refusal for what denied names. In the
// place of objects an error of the API may stand, and what is of the metrics API's is not there without. It keeps what it was asked.
func apiServer(t testing.TB, objects map[string]string, denied ...string) (*kube.Client, *[]string) {
	t.Helper()
	asked := new([]string)
	lock := make(chan struct{}, 1)
	answer := func(key string) string {
		lock <- struct{}{}
		defer func() { <-lock }()
		first, then, more := strings.Cut(objects[key], "|")
		if more {
			objects[key] = then
		}
		return first
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimSuffix(r.URL.Path, "/")
		name := path[strings.LastIndex(path, "/")+1:]
		ofMetrics := strings.HasPrefix(path, "/apis/"+metricsVersion)
		if ofMetrics {
			name += "." + metricsGroup
		}
		lock <- struct{}{}
		*asked = append(*asked, r.URL.Path)
		<-lock
		w.Header().Set("Content-Type", "application/json")
		if slices.Contains(denied, name) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"%s is forbidden: User \"ada\" cannot list resource \"%s\" in API group \"\" in the namespace \"shop\""}`, name, name)
			return
		}
		if name == "nowhere" {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"namespaces \"nowhere\" not found","details":{"name":"nowhere","kind":"namespaces"}}`)
			return
		}
		if name == "log" {
			fmt.Fprint(w, answer(r.URL.RawQuery))
			return
		}
		text := answer(name)
		switch {
		case text == "" && (ofMetrics || name == metricsGroup):
			w.WriteHeader(http.StatusNotFound)
			text = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"the server could not find the requested resource"}`
		case strings.HasPrefix(text, unavailable):
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			text = `{"items":[` + text + `]}`
		}
		fmt.Fprint(w, text)
	}))
	t.Cleanup(server.Close)
	k, err := kube.NewForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return k, asked
}

func TestWhatMayNotBeReadIsSaid(t *testing.T) {
	k, _ := apiServer(t, nil, "nodes", "services", "events")
	r, err := Run(t.Context(), k, Options{})
	if err != nil {
		t.Fatal(err)
	}
	left := map[string][]string{}
	for _, u := range r.Unread {
		left[u.Resource] = u.Checks
		if u.Why != "your account may not" {
			t.Errorf("%s: %s", u.Resource, u.Why)
		}
	}
	if len(left) != 3 || !slices.Equal(left["nodes"], []string{"nodes"}) || !slices.Equal(left["services"], []string{"services", "ingresses"}) || left["events"] != nil {
		t.Errorf("unread are %+v", r.Unread)
	}
	if r.Findings == nil || len(r.Findings) > 0 || r.Worst() != "" { // a program finds a list there
		t.Errorf("found %+v", r.Findings)
	}
}

// A check that goes on without what may not be read is named with what was not read, as one that is left out.
func TestChecksThatAreLeftOutInPart(t *testing.T) {
	const pod = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"nodeName":"node1","containers":[{"name":"app","envFrom":[{"secretRef":{"name":"key"}},{"configMapRef":{"name":"settings"}}]}]},"status":{"phase":"Running"}}`
	k, _ := apiServer(t, map[string]string{"pods": pod}, "secrets", "configmaps", "endpointslices", "services")
	r, err := Run(t.Context(), k, Options{NoDial: true})
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]string{}
	for _, u := range r.Unread {
		left[u.Resource] = strings.Join(u.Checks, ", ")
	}
	want := map[string]string{"secrets": "configuration (in part)", "configmaps": "configuration (in part)", "endpointslices": "", "services": "services, ingresses"}
	if !maps.Equal(left, want) {
		t.Errorf("unread are %q, want %q", left, want)
	}
}

// A Service that no pod of its namespace belongs to may have its pods in another.
func TestPodsOfAServiceInAnotherNamespace(t *testing.T) {
	const service = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"selector":{"app":"it"},"ports":[{"port":80}]}}`
	k, asked := apiServer(t, map[string]string{"services": service, "pods": `|{"metadata":{"name":"it-1","namespace":"tools"}}`})
	r, err := Run(t.Context(), k, Options{NoDial: true})
	if err != nil || len(r.Findings) != 1 || r.Findings[0].ID != "service-no-pods" || !strings.Contains(r.Findings[0].Summary, "pod/it-1 in tools has them") {
		t.Errorf("%v, %+v", err, r)
	}
	if !slices.Contains(*asked, "/api/v1/pods") {
		t.Errorf("asked for %q", *asked)
	}
	if len(r.Unread) > 0 {
		t.Errorf("unread are %+v", r.Unread)
	}
	// Nor is anything asked of a workload's that has no pods now, and in a hurry.
	const deployment = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"replicas":0,"template":{"metadata":{"labels":{"app":"it"}}}}}`
	for _, o := range []struct {
		deployments string
		brief       bool
	}{{deployment, false}, {"", true}} {
		k, asked = apiServer(t, map[string]string{"services": service, "deployments": o.deployments})
		if _, err := Run(t.Context(), k, Options{NoDial: true, brief: o.brief}); err != nil || slices.Contains(*asked, "/api/v1/pods") {
			t.Errorf("%v, asked for %q", err, *asked)
		}
	}
}

// An IngressClass that may not be read is not taken for one that does not exist.
func TestIngressClassesThatMayNotBeRead(t *testing.T) {
	for _, spec := range []string{`{"ingressClassName":"nginx"}`, `{}`} {
		k, _ := apiServer(t, map[string]string{"ingresses": `{"metadata":{"name":"it","namespace":"shop"},"spec":` + spec + `}`}, "ingressclasses")
		r, err := Run(t.Context(), k, Options{NoDial: true})
		if err != nil || len(r.Findings) > 0 || len(r.Unread) != 1 || !slices.Equal(r.Unread[0].Checks, []string{"ingresses (in part)"}) {
			t.Errorf("%s: %v, %+v", spec, err, r)
		}
	}
	k, _ := apiServer(t, map[string]string{"ingresses": `{"metadata":{"name":"it","namespace":"shop"},"spec":{}}`, "ingressclasses": `{"metadata":{"name":"nginx"}}`}, "events")
	if r, err := Run(t.Context(), k, Options{NoDial: true}); err != nil || len(r.Findings) > 0 {
		t.Errorf("whether a controller has told of it is not known: %v, %+v", err, r)
	}
}

// Nor is a namespace.
func TestNamespacesThatMayNotBeRead(t *testing.T) {
	const policy = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"podSelector":{},"policyTypes":["Ingress"],"ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"name":"monitoring"}}}]}]}}`
	k, _ := apiServer(t, map[string]string{"networkpolicies": policy}, "namespaces")
	r, err := Run(t.Context(), k, Options{NoDial: true})
	if err != nil || len(r.Findings) > 0 || len(r.Unread) != 1 || r.Unread[0].Resource != "labels of namespaces" || !slices.Equal(r.Unread[0].Checks, []string{"network policies (in part)"}) {
		t.Errorf("%v, %+v", err, r)
	}
}

// What may not be read is not taken for what is not there.
func TestEventsThatMayNotBeRead(t *testing.T) {
	const pod = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"nodeName":"node1","containers":[{"name":"app"}]},"status":{"phase":"Running","containerStatuses":[{"name":"app","state":%s}]}}`
	for state, says := range map[string]string{
		`{"running":{"startedAt":"2026-11-28T11:00:00Z"}}`: "container app runs and is not ready, and its events, which may say why, were not read",
		`{}`: "its node has told nothing of its containers",
	} {
		k, _ := apiServer(t, map[string]string{"pods": fmt.Sprintf(pod, state)}, "events")
		r, err := Run(t.Context(), k, Options{NoDial: true})
		if err != nil || len(r.Findings) != 1 || r.Findings[0].ID != "pod-not-ready" || !strings.HasSuffix(r.Findings[0].Summary, says) {
			t.Errorf("%s: %v, %+v", state, err, r)
		}
		if len(r.Unread) != 1 || r.Unread[0].Resource != string(events) {
			t.Errorf("unread are %+v", r.Unread)
		}
	}
}

func TestWhatEndsIt(t *testing.T) {
	k, _ := apiServer(t, nil, "pods")
	if _, err := Run(t.Context(), k, Options{}); hint.CodeOf(err) != hint.Forbidden {
		t.Errorf("without the right to list pods: %v", err)
	}
	k, _ = apiServer(t, nil)
	if _, err := Run(t.Context(), k, Options{Targets: []Ref{{"deployment", "shop", "orders"}}}); hint.CodeOf(err) != hint.NotFound {
		t.Errorf("about a deployment that is not there: %v", err)
	}
	if _, err := Run(t.Context(), k.In("nowhere"), Options{}); hint.CodeOf(err) != hint.NotFound {
		t.Errorf("in a namespace that is not there: %v", err)
	}
	k, _ = apiServer(t, nil, "deployments")
	if _, err := Run(t.Context(), k, Options{Targets: []Ref{{"deployment", "shop", "orders"}}}); hint.CodeOf(err) != hint.Forbidden {
		t.Errorf("about a deployment that may not be read: %v", err)
	}
}

// What can be named and is not read otherwise is read when it is.
func TestTargetsThatAreReadWhenNamed(t *testing.T) {
	cronJob := `{"metadata":{"name":"nightly","namespace":"shop"},"spec":{"suspend":true}}`
	k, asked := apiServer(t, map[string]string{"cronjobs": cronJob, "replicationcontrollers": `{"metadata":{"name":"orders","namespace":"shop"},"spec":{"replicas":3}}`,
		"events": `{"involvedObject":{"kind":"ReplicationController","namespace":"shop","name":"orders"},"reason":"FailedCreate","message":"pods \"orders-x\" is forbidden: exceeded quota: small"}`})
	r, err := Run(t.Context(), k, Options{Targets: []Ref{{"cronjob", "shop", "nightly"}, {"replicationcontroller", "shop", "orders"}}})
	if err != nil || len(r.Findings) != 2 || r.Findings[0].ID != "pods-refused-quota" || r.Findings[1].ID != "cronjob-suspended" || r.Looked != 2 {
		t.Errorf("%v, %+v", err, r)
	}
	*asked = nil
	if r, err = Run(t.Context(), k, Options{}); err != nil || len(r.Findings) > 0 || slices.ContainsFunc(*asked, func(path string) bool { return strings.Contains(path, "cronjobs") }) {
		t.Errorf("none is named: %v, %+v, asked for %q", err, r, *asked)
	}
	for _, kind := range []string{"cronjob", "replicationcontroller"} {
		if _, err = Run(t.Context(), k, Options{Targets: []Ref{{kind, "shop", "other"}}}); hint.CodeOf(err) != hint.NotFound {
			t.Errorf("%s that is not there: %v", kind, err)
		}
	}
}

// However many pods there are, and whatever is wrong with them, it is a list call for each kind of object, and a few logs.
func TestOneListForEachKind(t *testing.T) {
	k, asked := crowdServer(t)
	r, err := Run(t.Context(), k, Options{})
	if err != nil || r.Looked != 200 || len(r.Findings) == 0 {
		t.Fatalf("looked at %d objects, found %d, %v", r.Looked, len(r.Findings), err)
	}
	logs := 0
	lists := slices.DeleteFunc(slices.Sorted(slices.Values(*asked)), func(path string) bool {
		of := strings.HasSuffix(path, "/log")
		if of {
			logs++
		}
		return of
	})
	const most = 20
	if got := len(lists); got > most || len(slices.Compact(lists)) != got || logs > logContainers {
		t.Errorf("%d lists, and %d logs: %q", got, logs, *asked)
	}
}

// The log is that of the run that ended, its last lines, once the kubelet finds it; that it may not be read is evidence, and no reason to end.
func TestTheLogOfTheRunBefore(t *testing.T) {
	const crashing = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"restartPolicy":"Always","containers":[{"name":"app"}]},"status":{"phase":"Running","containerStatuses":[
		{"name":"app","restartCount":1,"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"reason":"Error","exitCode":1}}}]}}`
	objects := map[string]string{"pods": crashing, "container=app&previous=true&tailLines=10": "unable to retrieve container logs for containerd://f243|one\ntwo\n"}
	k, _ := apiServer(t, objects)
	r, err := Run(t.Context(), k, Options{})
	if err != nil || len(r.Findings) != 1 || !slices.Equal(r.Findings[0].Log, []string{"one", "two"}) {
		t.Errorf("%v, %+v", err, r)
	}
	for last, id := range map[string]string{
		"exec /app/run: exec format error":                                        "program-architecture",
		`standard_init_linux.go:228: exec user process caused: exec format error`: "program-architecture",
		"exec /app/run.sh: no such file or directory":                             "program-command-not-found",
		"cannot exec /app/plugin: exec format error":                              "program-exits",
		`exec /app/run: exec format error` + "\n" + "and goes on":                 "program-exits",
		"open /app/settings: no such file or directory":                           "program-exits",
	} {
		objects["container=app&previous=true&tailLines=10"] = "one\n" + last + "\n"
		k, _ := apiServer(t, objects)
		if r, err := Run(t.Context(), k, Options{}); err != nil || len(r.Findings) != 1 || r.Findings[0].ID != id {
			t.Errorf("%s: %v, %+v", last, err, r.Findings)
		}
	}
	init := strings.NewReplacer(`"containers"`, `"initContainers"`, "containerStatuses", "initContainerStatuses").Replace(crashing)
	k, _ = apiServer(t, map[string]string{"pods": init, "container=app&previous=true&tailLines=10": "exec /app/run: exec format error\n"})
	if r, err := Run(t.Context(), k, Options{}); err != nil || len(r.Findings) != 1 || !strings.HasPrefix(r.Findings[0].Summary, "init container app cannot be started: ") {
		t.Errorf("an init container: %v, %+v", err, r.Findings)
	}
	k, _ = apiServer(t, objects, "log")
	if r, err = Run(t.Context(), k, Options{}); err != nil || len(r.Findings) != 1 {
		t.Fatalf("%v, %+v", err, r)
	}
	state := r.Findings[0].State
	if last := state[len(state)-1]; last.From != "pod/it log" || !strings.Contains(last.Says, "not readable: ") {
		t.Errorf("the last of its state is %+v", last)
	}
}

// What is proposed goes to the cluster that the user has chosen, also what stands behind another finding.
func TestNextStepsGoToTheChosenCluster(t *testing.T) {
	k, _ := apiServer(t, map[string]string{
		"pods": `{"metadata":{"name":"it","namespace":"shop","labels":{"app":"it"}},"spec":{"nodeName":"node1","containers":[{"name":"app","image":"app:1"}]},
			"status":{"phase":"Pending","containerStatuses":[{"name":"app","state":{"waiting":{"reason":"ErrImagePull","message":"manifest unknown"}}}]}}`,
		"services": `{"metadata":{"name":"it","namespace":"shop"},"spec":{"selector":{"app":"it"},"ports":[{"port":80}]}}`,
	})
	k.Flags = " --context staging"
	r, err := Run(t.Context(), k, Options{NoDial: true})
	if err != nil || len(r.Findings) != 1 || len(r.Findings[0].Symptoms) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, next := range append(r.Findings[0].Next, r.Findings[0].Symptoms[0].Next...) {
		if strings.Count(next, k.Flags) != strings.Count(next, "kubectl ")+strings.Count(next, "bridge ") {
			t.Errorf("not all go to staging: %s", next)
		}
	}
}
