//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"
)

// granting is a Role with these rights.
func granting(name string, list []rights.Right) rbacv1.Role {
	r := rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, a := range list {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{APIGroups: []string{a.Group}, Resources: []string{a.Resource}, Verbs: []string{a.Verb}})
	}
	return r
}

// without is what is in all and not in others.
func without(all []rights.Right, others ...rights.Right) []rights.Right {
	return slices.DeleteFunc(slices.Clone(all), func(r rights.Right) bool { return slices.Contains(others, r) })
}

// Whichever right is missing, a command names it and has not touched anything; with all of them it does not complain of rights.
func TestEachMissingRightIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	pod := w.pods("app=orders")[0].Name
	type attempt struct {
		command rights.Command
		args    []string
		needs   []rights.Right // of which one is missing
		has     []rights.Right // besides
		// says is what it says before the right, in a sentence; "" names all that are missing in lines, and ends with the Role.
		says string
	}
	local := localOrders(t)
	swap := func(kind, name string, flags ...string) []string {
		return slices.Concat([]string{"swap", kind, name}, local, flags)
	}
	orders := func(flags ...string) []string { return swap("deployment", "orders", flags...) }
	forward := func(kind kube.Kind, more ...rights.Right) []rights.Right {
		group := ""
		if kind == kube.Deployment {
			group = "apps"
		}
		return append(more, rights.Right{Group: group, Resource: string(kind) + "s", Verb: "get"},
			rights.Right{Resource: "pods/portforward", Verb: "get"}, rights.Right{Resource: "pods/portforward", Verb: "create"})
	}
	first := rights.Swap.Required(true)
	stands := without(slices.Concat(rights.Moving(), rights.Standing()), first...)
	const cannot = "deployment/orders cannot be swapped in mode standby: your account may not "
	attempts := []attempt{
		{rights.Swap, orders(), first, nil, ""},
		{rights.Connect, []string{"connect"}, rights.Connect.Required(true), nil, ""},
		{rights.Restore, []string{"restore", "deployment", "orders"}, rights.Restore.Required(false), nil, ""},
		// A single right: the API server's own word.
		{rights.Status, []string{"status"}, rights.Status.Required(false), nil, "may not "},
		{rights.Forward, []string{"forward", "svc/orders", "0:80"}, forward(kube.Service), []rights.Right{{Group: "discovery.k8s.io", Resource: "endpointslices", Verb: "list"}}, ""},
		{rights.Forward, []string{"forward", "svc/orders", "0:80", "--reconnect=never"}, forward(kube.Service, rights.Right{Resource: "pods", Verb: "get"}),
			[]rights.Right{{Group: "discovery.k8s.io", Resource: "endpointslices", Verb: "list"}}, ""},
		{rights.Forward, []string{"forward", "deployment/orders", "0:8080"}, forward(kube.Deployment, rights.Right{Resource: "pods", Verb: "list"}), nil, ""},
		{rights.Forward, []string{"forward", "pod/" + pod, "0:8080"}, forward(kube.Pod), nil, ""},
		{rights.Swap, orders("--mode", "standby"), stands, first, cannot},
		{rights.Swap, orders("--header", "x-user=ada"), without(rights.Sharing(), first...), slices.Concat(first, stands), cannot},
		{rights.Swap, orders("--self-restore", "always", "--mode", "replace"), without(rights.Keeping(kube.Deployment), first...), first,
			"nobody would give deployment/orders in " + w.ns + " back when this machine is gone: your account may not "},
		{rights.Connect, []string{"files", "deployment", "orders", filepath.Join(t.TempDir(), "files"), "--token"},
			[]rights.Right{{Resource: "serviceaccounts/token", Verb: "create"}}, rights.Connect.Required(true), "--token: your account may not "},
	}
	if soak(true, false) {
		set := rights.Swap.For(kube.StatefulSet)
		attempts = append(attempts,
			attempt{rights.Connect, []string{"env", "deployment", "orders"}, rights.Connect.Required(true), nil, ""},
			attempt{set, swap("statefulset", "db"), set.Required(true), nil, ""},
			attempt{rights.Restore.For(kube.StatefulSet), []string{"restore", "statefulset", "db"}, rights.Restore.For(kube.StatefulSet).Required(false), nil, ""})
	}
	for i, a := range attempts {
		who := make([]string, len(a.needs))
		for j, missing := range a.needs {
			name := fmt.Sprintf("without-%d-%d", i, j)
			who[j] = w.as(name, granting(name, slices.Concat(without(a.needs, missing), a.has)))
		}
		before := w.snapshot()
		t.Run(strings.Join(a.args[:min(2, len(a.args))], " "), func(t *testing.T) {
			for j, r := range a.needs {
				t.Run(r.String(), func(t *testing.T) {
					t.Parallel()
					b := start(t, s.bridge, []string{"KUBECONFIG=" + who[j], "XDG_STATE_HOME=" + t.TempDir()}, slices.Concat(a.args, []string{"-n", w.ns})...)
					b.exits(int(hint.Forbidden))
					if a.says != "" {
						b.says(a.says + r.String())
						return
					}
					b.says("your account may not do this:")
					if line := b.says("  " + r.String()); strings.TrimSpace(line) != r.String() {
						t.Errorf("it says %q of %v alone", line, r)
					}
					if !strings.HasSuffix(strings.Join(b.stderr.all(), "\n"), indented(a.command.Role(w.ns, false))) {
						t.Error("it does not end with the Role")
					}
				})
			}
		})
		w.assertSnapshot(before)
	}
}

// indented is text as a hint's further lines are printed.
func indented(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return "        " + strings.Join(lines, "\n        ")
}

// Each printed Role is enough for its command, and may be applied by who administers the namespace alone. The built-in role edit
// has all that is needed, as the docs say, but for debug, where it takes an admin of the cluster.
func TestPrintedRoles(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	bind := func(name, clusterRole string) kubernetes.Interface {
		w.as(name)
		_, err := s.client.RbacV1().RoleBindings(w.ns).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: clusterRole},
			Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: name, Namespace: w.ns}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		config := rest.CopyConfig(s.config)
		config.Impersonate.UserName = "system:serviceaccount:" + w.ns + ":" + name
		c, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	admin, editor := bind("boss", "admin"), bind("ed", "edit")
	w.as("ada")
	for _, c := range rights.Commands() {
		lacking, err := rights.Missing(t.Context(), &kube.Client{Clientset: editor, Namespace: w.ns}, append(c.Required(true), rights.Moving()...))
		applies := admin
		if c == rights.Debug || c == rights.Capture {
			applies = s.client
			lacking = slices.DeleteFunc(lacking, func(r rights.Right) bool { return r.Resource == "pods/ephemeralcontainers" })
		}
		if err != nil || len(lacking) > 0 {
			t.Errorf("edit lacks %v of what %s needs (%v)", lacking, c, err)
		}
		b := w.bridge("rbac", string(c), "--serviceaccount", w.ns+":ada")
		b.exits(0)
		role, binding, _ := strings.Cut(strings.Join(b.stdout.all(), "\n"), "\n---\n")
		var r rbacv1.Role
		var rb rbacv1.RoleBinding
		for text, to := range map[string]any{role: &r, binding: &rb} {
			if err := yaml.UnmarshalStrict([]byte(text), to); err != nil {
				t.Fatalf("%v in:\n%s", err, text)
			}
		}
		if _, err := applies.RbacV1().Roles(w.ns).Create(t.Context(), &r, metav1.CreateOptions{}); err != nil {
			t.Errorf("the admin may not apply the Role of %s: %v", c, err)
		}
		if _, err := applies.RbacV1().RoleBindings(w.ns).Create(t.Context(), &rb, metav1.CreateOptions{}); err != nil {
			t.Errorf("the admin may not bind the Role of %s: %v", c, err)
		}
	}
	config := rest.CopyConfig(s.config)
	config.Impersonate.UserName = "system:serviceaccount:" + w.ns + ":ada"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range rights.Commands() {
		if lacking, err := rights.Missing(t.Context(), &kube.Client{Clientset: client, Namespace: w.ns}, c.Required(true)); err != nil || len(lacking) > 0 {
			t.Errorf("who is bound to the Role of %s lacks %v (%v)", c, lacking, err)
		}
	}
}

// A dry run by the API server changes nothing, and says what would be refused: what a quota counts only when the pod comes, too.
func TestServerDryRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders", "--dry-run=server"}, localOrders(t)...)
	b := w.bridge(args...)
	b.exits(0)
	text := strings.Join(b.stdout.all(), "\n")
	docs := strings.Split(text, "\n---\n")
	var d appsv1.Deployment
	if err := yaml.UnmarshalStrict([]byte(docs[len(docs)-1]), &d); err != nil || d.Name != "bridge-deployment-orders-keeper" {
		t.Errorf("the last document: %v\n%s", err, text)
	}
	for _, words := range []string{"# 1. create lease/bridge-deployment-orders", "bytes, not shown", "create deployment/bridge-deployment-orders:", "create role/bridge-deployment-orders-keeper", "patch service/orders", "patch deployment/orders/scale", "# The record"} {
		if !strings.Contains(text, words) {
			t.Errorf("no %q in:\n%s", words, text)
		}
	}
	w.assertSnapshot(before)
	// What was printed can be applied, by kubectl's rules.
	for _, doc := range docs {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		options := metav1.ApplyOptions{FieldManager: "kubectl", DryRun: []string{metav1.DryRunAll}}
		if _, err := s.dynamic.Resource(resource(o.GetKind())).Namespace(w.ns).Apply(t.Context(), o.GetName(), o, options); err != nil {
			t.Errorf("kubectl apply of %s: %v", o.GetName(), err)
		}
	}

	w.fullQuota()
	before = w.snapshot()
	b = w.bridge(append(args, "-o", "json")...)
	b.exits(int(hint.ProxyNotReady))
	b.says("the cluster would refuse")
	b.says("exceeded quota")
	var plan struct {
		Notes []string
		Steps []struct{ Verb, Name, Refused string }
	}
	if err := json.Unmarshal([]byte(strings.Join(b.stdout.all(), "\n")), &plan); err != nil {
		t.Fatal(err)
	}
	for _, step := range plan.Steps {
		if refused := strings.Contains(step.Refused, "exceeded quota"); refused != strings.HasPrefix(step.Name, "deployment/bridge-") {
			t.Errorf("%s %s: refused: %q", step.Verb, step.Name, step.Refused)
		}
	}
	if !slices.ContainsFunc(plan.Notes, func(n string) bool { return strings.Contains(n, "resourcequota/pods has no room") }) {
		t.Errorf("the notes do not say so: %q", plan.Notes)
	}
	w.assertSnapshot(before)
}

// fullQuota is one that has room for the pods there are.
func (w *world) fullQuota() {
	w.t.Helper()
	pods := len(w.pods(""))
	w.create(fmt.Sprintf("apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: pods}\nspec: {hard: {pods: %d}}", pods))
	w.await("the quota to be counted", func() bool {
		q, err := s.client.CoreV1().ResourceQuotas(w.ns).Get(w.t.Context(), "pods", metav1.GetOptions{})
		used := q.Status.Used[corev1.ResourcePods]
		return err == nil && used.Value() == int64(pods)
	})
}

// create creates an object of any kind in the namespace; its resource is the kind's plural.
func (w *world) create(doc string) {
	w.t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
		w.t.Fatal(err)
	}
	gv, err := schema.ParseGroupVersion(o.GetAPIVersion())
	if err != nil {
		w.t.Fatal(err)
	}
	name := strings.ToLower(o.GetKind()) + "s"
	if base, y := strings.CutSuffix(name, "ys"); y {
		name = base + "ies"
	}
	if _, err := s.dynamic.Resource(gv.WithResource(name)).Namespace(w.ns).Create(w.t.Context(), o, metav1.CreateOptions{}); err != nil {
		w.t.Fatalf("create %s: %v", o.GetName(), err)
	}
}

// What else concerns the workload is said in one line each, before anything happens; and that it is not known, to those who may
// not read it.
func TestLookout(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	for _, doc := range []string{
		"apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: orders}\nspec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: orders}, minReplicas: 2, maxReplicas: 4}",
		"apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: orders}\nspec: {minAvailable: 1, selector: {matchLabels: {app: orders}}}",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: inside}\nspec: {podSelector: {}, policyTypes: [Ingress], ingress: [{}]}",
		"apiVersion: v1\nkind: LimitRange\nmetadata: {name: small}\nspec: {limits: [{type: Container, min: {memory: 64Mi}}]}",
	} {
		w.create(doc)
	}
	w.fullQuota()
	ns, err := s.client.CoreV1().Namespaces().Get(t.Context(), w.ns, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ns.Labels["istio-injection"] = "enabled"
	if _, err := s.client.CoreV1().Namespaces().Update(t.Context(), ns, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	d, err := s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	metav1.SetMetaDataAnnotation(&d.ObjectMeta, "argocd.argoproj.io/tracking-id", "shop:apps/Deployment:"+w.ns+"/orders")
	metav1.SetMetaDataLabel(&d.ObjectMeta, "kustomize.toolkit.fluxcd.io/name", "shop")
	metav1.SetMetaDataLabel(&d.ObjectMeta, "kustomize.toolkit.fluxcd.io/namespace", "flux-system")
	if _, err := s.client.AppsV1().Deployments(w.ns).Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders", "--dry-run"}, localOrders(t)...)
	b := w.bridge(args...)
	b.exits(0)
	for _, words := range []string{
		"horizontalpodautoscaler/orders stands still", "poddisruptionbudget/orders counts the proxy's one pod, and does not let it be evicted",
		"networkpolicy/inside holds", "limitrange/small wants 64Mi memory at least", "resourcequota/pods has no room",
		"Istio puts its sidecar", "Argo CD's application shop manages", "flux suspend kustomization shop -n flux-system",
	} {
		if line := b.prints(words); !strings.HasPrefix(line, "# note: ") {
			t.Errorf("it says %q", line)
		}
	}
	b = w.bridge(append(args, "--mode", "standby")...)
	b.exits(0)
	b.prints("# note: horizontalpodautoscaler/orders goes on, and may take the original")
	for _, words := range []string{
		"Argo CD's application shop manages this deployment: with self-heal it sets back the selector of service/orders",
		"Flux's kustomization shop manages this deployment: at its next reconciliation it sets back the selector of service/orders",
	} {
		if line := b.prints(words); !strings.HasPrefix(line, "# note: ") {
			t.Errorf("it says %q", line)
		}
	}
	w.assertSnapshot(before)
	who := w.as("ada", granting("least", rights.Swap.Required(true)))
	b = w.bridgeAs(who, nil, append(args, "--mode", "replace")...)
	b.exits(0)
	b.prints("# note: not looked at, since your account may not read them")
	for _, line := range b.stdout.all() {
		if strings.Contains(line, "horizontalpodautoscaler") {
			t.Errorf("without the right to: %q", line)
		}
	}
}

// kedaYAML is KEDA's kind of object, as far as bridge reads it.
const kedaYAML = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: scaledobjects.keda.sh}
spec:
  group: keda.sh
  scope: Namespaced
  names: {plural: scaledobjects, singular: scaledobject, kind: ScaledObject, listKind: ScaledObjectList}
  versions:
  - {name: v1alpha1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`

// KEDA's objects and a claim that one node at a time can have are read from the cluster, and nothing is said of KEDA where there is none:
// that is looked at once in a cluster, where the definition then stays.
func TestLookoutAtKEDAAndAVolume(t *testing.T) {
	embedded(t) // a real KEDA would act
	t.Parallel()
	w := newWorld(t)
	w.volume("data")
	w.create(`{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Mi}}}}`)
	w.apply(strings.NewReplacer(
		"      containers:", "      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]\n      containers:",
		"        ports:", "        volumeMounts: [{name: data, mountPath: /data}]\n        ports:").Replace(fmt.Sprintf(ordersYAML, s.image)))
	w.awaitReady("app=orders", 2)
	who := w.as("ada", granting("least", rights.Swap.Required(true)))
	before := w.snapshot()
	args := slices.Concat(swapArgs(localOrders(t)), []string{"--dry-run", "--mode"})
	unread := func() string {
		t.Helper()
		b := w.bridgeAs(who, nil, append(args, "replace")...)
		b.exits(0)
		return b.prints("# note: not looked at, since your account may not read them")
	}
	const ofKEDA, ofVolumes = "KEDA's ScaledObjects", "volume claims"
	objects := s.dynamic.Resource(schema.GroupVersionResource{Group: "keda.sh", Version: "v1alpha1", Resource: "scaledobjects"}).Namespace(w.ns)
	if _, err := objects.List(t.Context(), metav1.ListOptions{}); apierrors.IsNotFound(err) { // else a run before this one has left it
		if line := unread(); strings.Contains(line, ofKEDA) || !strings.Contains(line, ofVolumes) {
			t.Errorf("without KEDA: %q", line)
		}
		crd := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(kedaYAML), &crd.Object); err != nil {
			t.Fatal(err)
		}
		crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
		if _, err := s.dynamic.Resource(crds).Create(t.Context(), crd, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	w.await("KEDA's kind of object", func() bool { _, err := objects.List(t.Context(), metav1.ListOptions{}); return err == nil })
	w.create("apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: orders}\nspec: {scaleTargetRef: {name: orders}, minReplicaCount: 2, triggers: []}")

	b := w.bridge(append(args, "replace")...)
	b.exits(0)
	for _, words := range []string{"scaledobject/orders (KEDA) scales the original up from 0 when a trigger fires", "persistentvolumeclaim/data can be used on one node at a time: the proxy is without it"} {
		if line := b.prints(words); !strings.HasPrefix(line, "# note: ") {
			t.Errorf("it says %q", line)
		}
	}
	b = w.bridge(append(args, "standby")...)
	b.exits(0)
	b.prints("# note: scaledobject/orders (KEDA) goes on, and may take the original, which gets little traffic now, down to its minimum of 2")
	if line := unread(); !strings.Contains(line, ofKEDA) || !strings.Contains(line, ofVolumes) {
		t.Errorf("without the right to: %q", line)
	}
	w.assertSnapshot(before)
}

// force is apply in the name of manager, as a GitOps controller does it: with force.
func (w *world) force(manager, docs string) error {
	for doc := range strings.SplitSeq(docs, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			return err
		}
		options := metav1.ApplyOptions{FieldManager: manager, Force: true}
		if _, err := s.dynamic.Resource(resource(o.GetKind())).Namespace(w.ns).Apply(w.t.Context(), o.GetName(), o, options); err != nil {
			return err
		}
	}
	return nil
}

// A controller that re-applies the manifest every five seconds ends the swap, soon and with everything given back, whenever it
// begins, and bridge says what can be done.
func TestControllerThatRevertsEndsTheSwap(t *testing.T) {
	t.Parallel()
	const period, noticed = 5 * time.Second, 15 * time.Second
	for _, c := range []struct {
		begin string
		flags []string
		alone string // what it is to leave alone
	}{
		{"creating the proxy", nil, "spec.replicas of deployment/orders and spec.selector of service orders"},
		{swapped, nil, "spec.replicas of deployment/orders and spec.selector of service orders"},
		{swapped, standing, "spec.selector of service orders"},
	} {
		begin := c.begin
		t.Run(strings.Join(append([]string{"from", begin}, c.flags...), " "), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			b := w.beginSwap(c.flags...)
			b.says(begin)
			first := time.Now()
			tick := time.NewTicker(period)
			defer tick.Stop()
			for on := true; on; {
				if err := w.force("team", fmt.Sprintf(ordersYAML, s.image)); err != nil {
					t.Fatal(err)
				}
				select {
				case <-tick.C:
				case <-b.ended:
					on = false
				}
			}
			took := time.Since(first)
			b.exits(int(hint.Conflict))
			b.says("the swap does not hold: team has ")
			for _, remedy := range []string{"argocd app set", "have it leave alone " + c.alone + ":", "bridge connect -n " + w.ns} {
				b.says(remedy)
			}
			if begin == swapped {
				t.Logf("ended, with all given back, after %v", took.Round(100*time.Millisecond))
				b.stderr.await(t, "giving deployment/orders back")
				if at := seconds(t, b.says("giving deployment/orders back")) - seconds(t, b.says(swapped)); at > (time.Duration(soak(1, slack)) * noticed).Seconds() {
					t.Errorf("noticed after %.1f s", at)
				} else {
					t.Logf("noticed after %.1f s", at)
				}
			}
			w.assertGivenBack(before)
		})
	}
}

// seconds is the time at the beginning of a step's line.
func seconds(t *testing.T, line string) (s float64) {
	t.Helper()
	if _, err := fmt.Sscanf(line, "%fs", &s); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	return s
}

// A person who scales the original up once is told what it means, and keeps it.
func TestOneScaleUpByAPersonStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.swap()
	_, err := s.client.AppsV1().Deployments(w.ns).Patch(t.Context(), "orders", types.MergePatchType, []byte(`{"spec":{"replicas":3}}`),
		metav1.PatchOptions{FieldManager: "kubectl"}, "scale")
	if err != nil {
		t.Fatal(err)
	}
	b.says("has scaled deployment/orders to 3: it stays so when this ends")
	b.terminate()
	b.says("spec.replicas of deployment/orders is 3, set by somebody else")
	d, err := s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil || *d.Spec.Replicas != 3 {
		t.Errorf("%d replicas (%v), want the person's 3", *d.Spec.Replicas, err)
	}
}

// What happens to the workload is in its events, as kubectl describe shows them; without the right to create events the swap is
// the same.
func TestEventsTellTheStory(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	d, err := s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	told := func() (reasons []string) {
		list, err := s.client.CoreV1().Events(w.ns).List(t.Context(), metav1.ListOptions{
			FieldSelector: "involvedObject.uid=" + string(d.UID) + ",source=bridge",
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			reasons = append(reasons, e.Reason)
		}
		slices.Sort(reasons)
		return slices.Compact(reasons) // a pod that goes may cut the tunnel more than once
	}
	b := w.swap()
	w.await("the first event", func() bool { return slices.Contains(told(), "Swapped") })
	if d, err = s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "orders", metav1.GetOptions{}); err != nil || !strings.HasPrefix(d.Annotations["bridge.internal/swapped"], "begun by ") {
		t.Errorf("annotations %v (%v), want one that says by whom it is swapped", d.Annotations, err)
	}
	// The proxy's pod goes, and until the quota does no other may come.
	w.create("apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: none}\nspec: {hard: {pods: 0}}")
	if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), w.proxy().Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("the cut in the events", func() bool { return slices.Contains(told(), "TunnelLost") })
	if err := s.client.CoreV1().ResourceQuotas(w.ns).Delete(t.Context(), "none", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("its end in the events", func() bool { return slices.Contains(told(), "TunnelRestored") })
	b.terminate()
	if got, want := told(), []string{"GivenBack", "Swapped", "TunnelLost", "TunnelRestored"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}

	who := w.as("ada", granting("least", append(rights.Swap.Required(true), rights.Moving()...)))
	before := w.snapshot()
	b = w.bridgeAs(who, nil, append([]string{"swap", "deployment", "orders", "--mode", "replace"}, localOrders(t)...)...)
	b.says(swapped)
	b.terminate()
	w.assertGivenBack(before)
}
