package lookout

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"bridge/internal/kube"
)

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var out T
	if err := yaml.UnmarshalStrict([]byte(text), &out); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return out
}

// subject is orders with a claim that its sidecar has too, and the proxy's pod for it.
func subject(t *testing.T) *Subject {
	t.Helper()
	d := decode[appsv1.Deployment](t, `
metadata: {name: orders, namespace: shop}
spec:
  template:
    spec:
      volumes:
      - {name: data, persistentVolumeClaim: {claimName: orders}}
`)
	w, err := kube.WorkloadOf(&d)
	if err != nil {
		t.Fatal(err)
	}
	return &Subject{
		Target: w, Services: []string{"orders"}, Container: "app", ConfigMaps: 3,
		Pod: decode[corev1.PodTemplateSpec](t, `
metadata: {labels: {app: orders, bridge.internal/proxy: x}}
spec:
  containers:
  - name: app
    resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 256Mi}}
  - name: sidecar
    resources: {limits: {cpu: 100m}}
`),
	}
}

// Each thing that concerns the workload is one line, with what will happen; what does not concern it is none.
func TestLines(t *testing.T) {
	hpas := func(docs ...string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			var list []autoscalingv2.HorizontalPodAutoscaler
			for _, d := range docs {
				list = append(list, decode[autoscalingv2.HorizontalPodAutoscaler](t, d))
			}
			return autoscalerNotes(list, s)
		}
	}
	objects := func(doc string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			return kedaNotes([]scaled{decode[scaled](t, doc)}, s, " --context staging")
		}
	}
	target := func(doc string, l look) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			s.Target.ObjectMeta = decode[appsv1.Deployment](t, "metadata: {name: orders, namespace: shop, "+doc+"}").ObjectMeta
			notes, err := l(t.Context(), nil, s)
			if err != nil {
				t.Fatal(err)
			}
			return notes
		}
	}
	budgets := func(spec string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			return budgetNotes([]policyv1.PodDisruptionBudget{decode[policyv1.PodDisruptionBudget](t, "metadata: {name: b}\nspec: "+spec)}, s)
		}
	}
	quotas := func(doc string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			return quotaNotes([]corev1.ResourceQuota{decode[corev1.ResourceQuota](t, "metadata: {name: q}\n"+doc)}, s)
		}
	}
	kept := func(look func(*testing.T, *Subject) []string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			s.Keeper = &corev1.PodTemplateSpec{}
			return look(t, s)
		}
	}
	standing := func(look func(*testing.T, *Subject) []string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			s.Standby = true
			return look(t, s)
		}
	}
	ofKind := func(kind kube.Kind, look func(*testing.T, *Subject) []string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			s.Target.Kind = kind
			return look(t, s)
		}
	}
	started := func(init string, look func(*testing.T, *Subject) []string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			s.Pod.Spec.InitContainers = decode[corev1.PodSpec](t, "initContainers: "+init).InitContainers
			return look(t, s)
		}
	}
	ranges := func(item string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			return limitRangeNotes([]corev1.LimitRange{decode[corev1.LimitRange](t, "metadata: {name: l}\nspec: {limits: ["+item+"]}")}, s)
		}
	}
	meshes := func(ns, pod string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			n := decode[corev1.Namespace](t, "metadata: {"+ns+"}")
			s.Pod.ObjectMeta = decode[corev1.Pod](t, "metadata: {"+pod+"}").ObjectMeta
			return meshNotes(&n, s)
		}
	}
	policies := func(spec string) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			return policyNotes([]networkingv1.NetworkPolicy{decode[networkingv1.NetworkPolicy](t, "metadata: {name: inside}\nspec: "+spec)}, s)
		}
	}
	claims := func(modes string, kept bool) func(*testing.T, *Subject) []string {
		return func(t *testing.T, s *Subject) []string {
			c := decode[corev1.PersistentVolumeClaim](t, "metadata: {name: orders}\nspec: {accessModes: ["+modes+"]}")
			if kept {
				s.Pod.Spec.Volumes = s.Target.Template.Spec.Volumes
			}
			note := volumeNote(&c, "data", s)
			return slices.DeleteFunc([]string{note}, func(s string) bool { return s == "" })
		}
	}
	const hpa = "metadata: {name: a}\nspec: {maxReplicas: 4, "
	for _, c := range []struct {
		name  string
		notes func(*testing.T, *Subject) []string
		want  string // what the one line has; "" for no line
	}{
		{"an autoscaler", hpas(hpa + "scaleTargetRef: {kind: Deployment, name: orders}}"), "horizontalpodautoscaler/a stands still"},
		{"an autoscaler that may begin at 0", hpas(hpa + "minReplicas: 0, scaleTargetRef: {kind: Deployment, name: orders}}"), "may scale the original up from 0"},
		{"another's autoscaler", hpas(hpa+"scaleTargetRef: {kind: Deployment, name: payments}}", hpa+"scaleTargetRef: {kind: StatefulSet, name: orders}}"), ""},
		{"KEDA's autoscaler", hpas("metadata: {name: a, ownerReferences: [{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, name: o, uid: u, controller: true}]}\nspec: {maxReplicas: 4, scaleTargetRef: {kind: Deployment, name: orders}}"), ""},
		{"a ScaledObject", objects("metadata: {name: o}\nspec: {scaleTargetRef: {name: orders}}"), "kubectl annotate scaledobject o -n shop --context staging autoscaling.keda.sh/paused-replicas=0"},
		{"a paused ScaledObject", objects("metadata: {name: o, annotations: {autoscaling.keda.sh/paused-replicas: \"0\"}}\nspec: {scaleTargetRef: {name: orders, kind: Deployment}}"), "leaves the original there"},
		{"a ScaledObject that is paused elsewhere", objects("metadata: {name: o, annotations: {autoscaling.keda.sh/paused-replicas: \"3\"}}\nspec: {scaleTargetRef: {name: orders}}"), "paused at 3 replicas"},
		{"another's ScaledObject", objects("metadata: {name: o}\nspec: {scaleTargetRef: {name: orders, kind: StatefulSet}}"), ""},
		{"an autoscaler of an original that goes on", standing(hpas(hpa + "scaleTargetRef: {kind: Deployment, name: orders}}")), "down to its minimum of 1: so few answer at first"},
		{"one that goes down to 0", standing(hpas(hpa + "minReplicas: 0, scaleTargetRef: {kind: Deployment, name: orders}}")), "minimum of 0: then nobody answers"},
		{"a ScaledObject of an original that goes on", standing(objects("metadata: {name: o}\nspec: {scaleTargetRef: {name: orders}}")), "minimum of 0: then nobody answers what this machine cannot take; to keep it as it is: kubectl annotate scaledobject o -n shop --context staging autoscaling.keda.sh/paused=true"},
		{"one with a minimum", standing(objects("metadata: {name: o}\nspec: {minReplicaCount: 2, scaleTargetRef: {name: orders}}")), "minimum of 2: so few"},
		{"one that may be idle", standing(objects("metadata: {name: o}\nspec: {minReplicaCount: 2, idleReplicaCount: 0, scaleTargetRef: {name: orders}}")), "minimum of 0"},
		{"one that is paused", standing(objects("metadata: {name: o, annotations: {autoscaling.keda.sh/paused-replicas: \"3\"}}\nspec: {scaleTargetRef: {name: orders}}")), ""},
		{"one that is paused at 0", standing(objects("metadata: {name: o, annotations: {autoscaling.keda.sh/paused-replicas: \"0\"}}\nspec: {scaleTargetRef: {name: orders}}")), "nobody answers"},
		{"Argo CD, by annotation", target("annotations: {argocd.argoproj.io/tracking-id: \"store:apps/Deployment:shop/orders\"}", argoCD), "argocd app set store --sync-policy none) or have it ignore its spec.replicas and spec.selector of service/orders"},
		{"Argo CD, and an original that goes on", standing(target("annotations: {argocd.argoproj.io/tracking-id: \"store:apps/Deployment:shop/orders\"}", argoCD)),
			"it sets back the selector of service/orders where it manages that too (callers may be refused until bridge sees it, within 5 seconds), and the swap ends; pause it (argocd app set store --sync-policy none) or have it ignore spec.selector of service/orders"},
		{"Argo CD, and a pod that belongs to nobody", standing(ofKind(kube.Pod, target("labels: {argocd.argoproj.io/instance: store}", argoCD))), "application store manages this pod: with self-heal it sets back the selector of service/orders"},
		{"Argo CD, by label", target("labels: {argocd.argoproj.io/instance: store}", argoCD), "application store"},
		{"Helm's label", target("labels: {app.kubernetes.io/instance: store}", argoCD), ""},
		{"Flux' kustomization", target("labels: {kustomize.toolkit.fluxcd.io/name: k, kustomize.toolkit.fluxcd.io/namespace: f}", flux), "flux suspend kustomization k -n f"},
		{"Flux' kustomization, and an original that goes on", standing(target("labels: {kustomize.toolkit.fluxcd.io/name: k, kustomize.toolkit.fluxcd.io/namespace: f}", flux)), "at its next reconciliation it sets back the selector of service/orders"},
		{"Flux, told to leave it alone", target("labels: {kustomize.toolkit.fluxcd.io/name: k}, annotations: {kustomize.toolkit.fluxcd.io/reconcile: disabled}", flux), "leave it alone"},
		{"Flux' release", target("labels: {helm.toolkit.fluxcd.io/name: r, helm.toolkit.fluxcd.io/namespace: f}", flux), "flux suspend helmrelease r -n f"},
		{"Flux' release, and an original that goes on", standing(target("labels: {helm.toolkit.fluxcd.io/name: r, helm.toolkit.fluxcd.io/namespace: f}", flux)), "with the next release, it sets back the selector of service/orders"},
		{"no GitOps", target("labels: {app: orders}", flux), ""},
		{"a budget that keeps one pod", budgets("{minAvailable: 50%, selector: {matchLabels: {app: orders}}}"), "does not let it be evicted"},
		{"a budget that allows one to go", budgets("{maxUnavailable: 1, selector: {matchLabels: {app: orders}}}"), "lets it be evicted"},
		{"another's budget", budgets("{minAvailable: 1, selector: {matchLabels: {app: payments}}}"), ""},
		{"a full quota", quotas("status: {hard: {pods: 2, limits.cpu: 1}, used: {pods: 2, limits.cpu: 500m}}"), "pods (2 of 2 used, 1 more needed)"},
		{"a quota of requests", quotas("status: {hard: {requests.cpu: 1}, used: {requests.cpu: 900m}}"), "requests.cpu (900m of 1 used, 110m more needed)"},
		{"a quota of ConfigMaps", quotas("status: {hard: {configmaps: 3}, used: {configmaps: 1}}"), "configmaps (1 of 3 used, 3 more needed)"},
		{"a quota with room", quotas("status: {hard: {pods: 3, requests.memory: 1Gi}, used: {pods: 2, requests.memory: 512Mi}}"), ""},
		{"a quota with room for one", kept(quotas("status: {hard: {pods: 3}, used: {pods: 2}}")), "has room for the proxy or its keeper, not both: pods (2 of 3 used, 2 more needed)"},
		{"a quota with room for two", kept(quotas("status: {hard: {pods: 4}, used: {pods: 2}}")), ""},
		{"a quota with room for none", kept(quotas("status: {hard: {pods: 2}, used: {pods: 2}}")), "no room for the proxy beside"},
		{"a quota with room for the larger of an init container and the others", started("[{name: i, resources: {requests: {cpu: 1}}}, {name: j, resources: {requests: {cpu: 1}}}]",
			quotas("status: {hard: {requests.cpu: 1, limits.cpu: 100m}, used: {}}")), ""},
		{"a quota without room for an init container", started("[{name: i, resources: {limits: {cpu: 2}, requests: {cpu: 1}}}]",
			quotas("status: {hard: {requests.cpu: 900m}, used: {}}")), "requests.cpu (0 of 900m used, 1 more needed)"},
		{"a quota without room for one after a sidecar", started("[{name: s, restartPolicy: Always, resources: {limits: {cpu: 1}}}, {name: i, resources: {limits: {cpu: 2}}}]",
			quotas("status: {hard: {limits.cpu: 2}, used: {}}")), "limits.cpu (0 of 2 used, 3 more needed)"},
		{"a quota for other pods", quotas("spec: {scopes: [BestEffort]}\nstatus: {hard: {pods: 2}, used: {pods: 2}}"), ""},
		{"a range with a minimum", ranges("{type: Container, min: {memory: 64Mi}}"), "limitrange/l wants 64Mi memory at least of every container, the proxy asks for 32Mi"},
		{"a range with a maximum", ranges("{type: Container, max: {memory: 128Mi}}"), "the proxy's limit is 256Mi"},
		{"a range with a ratio", ranges("{type: Container, maxLimitRequestRatio: {memory: 4}}"), "of 4 times the request"},
		{"a range with a default", ranges("{type: Container, default: {cpu: 500m, memory: 1Gi}}"), "a CPU limit of 500m"},
		{"a range that fits", ranges("{type: Container, min: {cpu: 5m}, max: {memory: 1Gi}}"), ""},
		{"a range for claims", ranges("{type: PersistentVolumeClaim, min: {storage: 1Gi}}"), ""},
		{"Istio, for the namespace", meshes("labels: {istio-injection: enabled}", ""), "Istio puts its sidecar"},
		{"Istio, by revision", meshes("labels: {istio.io/rev: stable}", ""), "Istio puts its sidecar"},
		{"Istio, for the pod alone", meshes("", "labels: {sidecar.istio.io/inject: \"true\"}"), "Istio puts its sidecar"},
		{"Istio, not for this pod", meshes("labels: {istio-injection: enabled}", "annotations: {sidecar.istio.io/inject: \"false\"}"), ""},
		{"Istio's ambient mode", meshes("labels: {istio.io/dataplane-mode: ambient}", ""), "ambient mode"},
		{"Linkerd", meshes("annotations: {linkerd.io/inject: enabled}", ""), "Linkerd puts its sidecar"},
		{"Linkerd, not for this pod", meshes("annotations: {linkerd.io/inject: enabled}", "annotations: {linkerd.io/inject: disabled}"), ""},
		{"a policy for all", policies("{policyTypes: [Ingress], podSelector: {}}"), "networkpolicy/inside holds for the proxy's pod"},
		{"a policy for others", policies("{policyTypes: [Ingress], podSelector: {matchLabels: {app: payments}}}"), ""},
		{"a policy of what goes out", policies("{policyTypes: [Egress], podSelector: {}}"), ""},
		{"a claim of one node", claims("ReadWriteOnce", false), "the proxy is without it"},
		{"a claim of one node that a sidecar has", claims("ReadWriteOncePod", true), "the proxy starts only where the original runs"},
		{"a claim of many", claims("ReadWriteMany", true), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			of := subject(t)
			notes := c.notes(t, of)
			switch {
			case of.Standby && (strings.Contains(strings.Join(notes, "\n"), "scales the original") || strings.Contains(strings.Join(notes, "\n"), "spec.replicas")):
				t.Errorf("it says %q of an original that bridge does not scale", notes)
			case c.want == "" && len(notes) > 0:
				t.Errorf("it says %q", notes)
			case c.want != "" && (len(notes) != 1 || !strings.Contains(notes[0], c.want) || strings.Contains(notes[0], "\n")):
				t.Errorf("it says %q, want one line with %q", notes, c.want)
			}
		})
	}
}

// What is read of KEDA and of claims, and what is said of what may not be: an API server says that of what it does not have, too.
func TestReadsOfKEDAAndClaims(t *testing.T) {
	const (
		api     = "/apis/keda.sh/v1alpha1"
		objects = api + "/namespaces/shop/scaledobjects"
		claim   = "/api/v1/namespaces/shop/persistentvolumeclaims/orders"
		unread  = "not looked at"
	)
	has := map[string]string{
		api:     `{"kind":"APIResourceList","groupVersion":"keda.sh/v1alpha1","resources":[]}`,
		objects: `{"items":[{"metadata":{"name":"o"},"spec":{"scaleTargetRef":{"name":"orders"}}}]}`,
		claim:   `{"kind":"PersistentVolumeClaim","apiVersion":"v1","metadata":{"name":"orders"},"spec":{"accessModes":["ReadWriteOnce"]}}`,
	}
	for _, c := range []struct {
		name    string
		refused map[string]int // what else than has is answered with
		want    []string
	}{
		{"all is there", nil, []string{"scaledobject/o (KEDA) scales", "persistentvolumeclaim/orders can be used"}},
		{"no KEDA", map[string]int{api: 404, objects: 404}, []string{"persistentvolumeclaim/orders can be used"}},
		{"no KEDA, for who may not read it", map[string]int{api: 404, objects: 403}, []string{"persistentvolumeclaim/orders can be used"}},
		{"KEDA may not be read", map[string]int{objects: 403}, []string{"persistentvolumeclaim/orders can be used", unread + ": KEDA's ScaledObjects"}},
		{"the claim may not be read", map[string]int{claim: 403}, []string{"scaledobject/o (KEDA) scales", unread + ": volume claims"}},
		{"the claim is gone", map[string]int{claim: 404}, []string{"scaledobject/o (KEDA) scales"}},
		{"KEDA's own server is down", map[string]int{objects: 503}, []string{"persistentvolumeclaim/orders can be used", unread + ": KEDA's ScaledObjects"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				code, body := http.StatusOK, has[r.URL.Path]
				if refused, is := c.refused[r.URL.Path]; is {
					code = refused
				} else if body == "" {
					code = http.StatusNotFound // of other kinds there is nothing
				}
				if code != http.StatusOK {
					reason := map[int]string{403: "Forbidden", 404: "NotFound", 503: "ServiceUnavailable"}[code]
					body = fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, code)
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(code)
				_, _ = io.WriteString(w, body)
			}))
			defer server.Close()
			k, err := kube.NewForConfig(&rest.Config{Host: server.URL}, "shop")
			if err != nil {
				t.Fatal(err)
			}
			notes := Look(t.Context(), k, *subject(t))
			if len(notes) != len(c.want) {
				t.Fatalf("it says %q", notes)
			}
			for i, want := range c.want {
				first, rest, _ := strings.Cut(want, ": ")
				if !strings.HasPrefix(notes[i], first) || !strings.HasSuffix(notes[i], rest) {
					t.Errorf("it says %q, want %q", notes[i], want)
				}
			}
		})
	}
}
