//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	point "bridge/internal/fault"
	"bridge/internal/hint"
)

// patch changes something of orders in somebody's name.
func (w *world) patch(kind, manager, body string) {
	w.t.Helper()
	_, err := s.dynamic.Resource(resource(kind)).Namespace(w.ns).Patch(w.t.Context(), "orders", types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{FieldManager: manager})
	if err != nil {
		w.t.Fatal(err)
	}
}

// foreign is orders and its Service as far as a swap has no business with them: without what it changes and what the
// controllers count, and with the fields of those managers only who came while it was swapped.
func (w *world) foreign() string {
	w.t.Helper()
	var b strings.Builder
	for _, f := range []struct{ kind, ours string }{{"Deployment", "replicas"}, {"Service", "selector"}} {
		o, err := s.dynamic.Resource(resource(f.kind)).Namespace(w.ns).Get(w.t.Context(), "orders", metav1.GetOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		unstructured.RemoveNestedField(o.Object, "status")
		unstructured.RemoveNestedField(o.Object, "spec", f.ours)
		for _, f := range []string{"generation", "resourceVersion"} {
			unstructured.RemoveNestedField(o.Object, "metadata", f)
		}
		for _, a := range []string{"bridge.internal/undo", "bridge.internal/swapped", "deployment.kubernetes.io/revision"} {
			unstructured.RemoveNestedField(o.Object, "metadata", "annotations", a)
		}
		o.SetManagedFields(slices.DeleteFunc(o.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool { return m.Manager != "somebody" }))
		text, err := json.MarshalIndent(o.Object, "", " ")
		if err != nil {
			w.t.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}

// What somebody does to the workload while it is swapped is still so afterwards, whoever gives back: the holder, a restore, or the keeper.
func TestWhatOthersDidSurvives(t *testing.T) {
	t.Parallel()
	anew := s.image
	if s.embedded {
		anew = "docker.io/library/" + s.image // the same by another name
	}
	edits := []struct {
		what     string
		do       func(w *world)
		replicas int32
	}{
		{"rollout", func(w *world) {
			w.patch("Deployment", "somebody", fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"app","image":%q,"env":[{"name":"ROLLOUT","value":"1"}]}]}}}}`, anew))
			w.await("the record on both replicasets", func() bool { return len(w.recorded()) == 2 })
		}, 2},
		{"scale", func(w *world) {
			d := s.client.AppsV1().Deployments(w.ns)
			if _, err := d.UpdateScale(w.t.Context(), "orders", &autoscalingv1.Scale{
				ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: w.ns}, Spec: autoscalingv1.ScaleSpec{Replicas: 3},
			}, metav1.UpdateOptions{FieldManager: "somebody"}); err != nil {
				w.t.Fatal(err)
			}
		}, 3},
		{"labels and env", func(w *world) {
			w.patch("Deployment", "somebody", `{"metadata":{"labels":{"tier":"gold"},"annotations":{"note":"mine"}},"spec":{"template":{"spec":{"containers":[{"name":"app","env":[{"name":"MODE","value":"new"}]}]}}}}`)
		}, 2},
		{"ports of the Service", func(w *world) {
			w.patch("Service", "somebody", `{"metadata":{"labels":{"tier":"gold"}},"spec":{"ports":[{"name":"extra","port":8081,"targetPort":"http"}]}}`)
		}, 2},
	}
	for i, edit := range edits {
		for j, by := range []string{"the keeper", "the holder", "restore"} {
			if !soak(true, i%3 == j) {
				continue
			}
			t.Run(edit.what+", given back by "+by, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t).withOrders()
				var flags []string
				if by == "the keeper" {
					flags = soon
				}
				b := w.swap(flags...)
				edit.do(w)
				during := w.foreign()
				switch by {
				case "the keeper":
					b.kill()
					w.await("the keeper's end", func() bool { return w.lease() == nil })
				case "restore":
					b.kill()
					w.elsewhere().bridge("restore", "deployment", "orders").exits(0)
				default:
					b.terminate()
				}
				if after := w.foreign(); after != during {
					t.Errorf("what was\n%s\nis\n%s", during, after)
				}
				w.awaitReady("app=orders", int(edit.replicas))
				w.answersSteadily(original)
				if left := w.snapshot(); strings.Contains(left, "bridge.internal") || strings.Contains(left, "manager: bridge") {
					t.Errorf("something of ours is left:\n%s", left)
				}
			})
		}
	}
}

// recorded are the names of orders' ReplicaSets that have a copy of the record.
func (w *world) recorded() (names []string) {
	w.t.Helper()
	list, err := s.client.AppsV1().ReplicaSets(w.ns).List(w.t.Context(), metav1.ListOptions{LabelSelector: "app=orders,!bridge.internal/proxy"})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, rs := range list.Items {
		if rs.Annotations["bridge.internal/undo"] != "" {
			names = append(names, rs.Name)
		}
	}
	return names
}

// kubectl rollout undo during a swap takes the record off the deployment, for that of the ReplicaSet it goes back to, and undone again it puts it back as its own. With the
// Lease deleted then, too, the swap is given back: by the laptop that has the record in hand, or by a restore.
func TestRolloutUndoneDuringASwap(t *testing.T) {
	embedded(t) // for its kubectl
	t.Parallel()
	for i, undone := range []int{1, 2} {
		for j, by := range []string{"the laptop", "restore"} {
			if !soak(true, i == j) {
				continue
			}
			t.Run(fmt.Sprintf("%d times, given back by %s", undone, by), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t).withOrders()
				deployments := s.client.AppsV1().Deployments(w.ns)
				w.patch("Deployment", "somebody", `{"spec":{"template":{"spec":{"containers":[{"name":"app","env":[{"name":"ROLLOUT","value":"1"}]}]}}}}`)
				w.awaitReady("app=orders", 2) // of the second revision, once there are no others
				w.await("the second revision", func() bool {
					d, err := deployments.Get(t.Context(), "orders", metav1.GetOptions{})
					return err == nil && d.Status.ObservedGeneration == d.Generation && d.Status.UpdatedReplicas == 2 && d.Status.Replicas == 2
				})
				b := w.swap()
				w.await("the record on its replicaset", func() bool { return len(w.recorded()) == 1 })
				if by == "restore" {
					b.signal(syscall.SIGSTOP) // so that the Lease's end is not the laptop's to see
				}
				for range undone {
					before, err := deployments.Get(t.Context(), "orders", metav1.GetOptions{})
					if err != nil {
						t.Fatal(err)
					}
					if err := s.cluster(t.Context(), "kubectl", "-n", w.ns, "rollout", "undo", "deployment/orders"); err != nil {
						t.Fatal(err)
					}
					w.await("the rollout", func() bool {
						d, err := deployments.Get(t.Context(), "orders", metav1.GetOptions{})
						return err == nil && d.Generation > before.Generation && d.Status.ObservedGeneration >= d.Generation
					})
				}
				if err := s.client.CoordinationV1().Leases(w.ns).Delete(t.Context(), "bridge-deployment-orders", metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				if by == "restore" {
					b.kill()
					w.elsewhere().bridge("restore", "deployment", "orders").exits(0)
				} else {
					b.exits(int(hint.Conflict))
				}
				w.awaitReady("app=orders,!bridge.internal/proxy", 2)
				w.answersSteadily(original)
				if left := w.snapshot(); strings.Contains(left, "bridge.internal") || strings.Contains(left, "manager: bridge") {
					t.Errorf("something of ours is left:\n%s", left)
				}
			})
		}
	}
}

// A copy of the record that an earlier keeper has left on a ReplicaSet, or that kubectl rollout undo has put on the deployment again, scales nobody: while the original
// stands at 0 nothing is changed, and a person is asked; when it runs the copy goes, and the next swap is made.
func TestRecordOfLongAgo(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	deployments, sets := s.client.AppsV1().Deployments(w.ns), s.client.AppsV1().ReplicaSets(w.ns)
	b := w.swap()
	d, err := deployments.Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.await("the record on the replicaset", func() bool { return len(w.recorded()) == 1 })
	set := w.recorded()[0]
	annotation, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{"bridge.internal/undo": d.Annotations["bridge.internal/undo"]}}})
	if err != nil {
		t.Fatal(err)
	}
	b.terminate()
	scale := func(to int32) {
		t.Helper()
		w.patch("Deployment", "somebody", fmt.Sprintf(`{"spec":{"replicas":%d}}`, to))
		w.awaitReady("app=orders,!bridge.internal/proxy", int(to))
	}
	for _, on := range []string{"the replicaset", "the deployment"} {
		for _, restore := range [][]string{{"restore", "--all"}, {"restore", "deployment", "orders"}} {
			scale(0)
			if on == "the deployment" {
				w.patch("Deployment", "kubectl", string(annotation))
				w.await("its controller's copy", func() bool { return len(w.recorded()) == 1 })
			} else if _, err := sets.Patch(t.Context(), set, types.MergePatchType, annotation, metav1.PatchOptions{FieldManager: "kube-controller-manager"}); err != nil {
				t.Fatal(err)
			}
			before := w.snapshot()
			asked := w.elsewhere().bridge(restore...)
			asked.exits(int(hint.RestoreIncomplete))
			asked.says("nobody can tell whether that was given back, so nothing is changed")
			if restore[1] != "--all" {
				asked.says("kubectl scale deployment/orders")
			}
			w.assertSnapshot(before)
			again := w.bridge(swapArgs(localOrders(t))...)
			again.exits(int(hint.Conflict))
			again.says("which was not given back")

			scale(2)
			b := w.elsewhere().bridge(restore...)
			b.exits(0)
			b.says("of which nothing is there any more")
			if left := w.snapshot(); strings.Contains(left, "bridge.internal") || strings.Contains(left, "manager: bridge") {
				t.Errorf("something of ours is left:\n%s", left)
			}
		}
	}
	w.patch("Deployment", "kubectl", string(annotation))
	b = w.swap()
	w.answersSteadily("laptop")
	b.terminate()
	w.answersSteadily(original)
	if left := w.snapshot(); strings.Contains(left, "bridge.internal") || strings.Contains(left, "manager: bridge") {
		t.Errorf("something of ours is left:\n%s", left)
	}
}

// The target deleted, or deleted and made anew, at any moment: a clean end, nothing left, and the other one untouched.
func TestTargetDeletedAtAnyMoment(t *testing.T) {
	t.Parallel()
	background := metav1.DeletePropagationBackground
	points := soak([]point.Point{point.Claimed, point.ProxyReady, point.Recorded, point.Moved, point.Scaled, point.Watched, point.ScaledBack, point.ProxyDeleted},
		[]point.Point{point.Moved, point.Watched})
	for i, p := range points {
		for j, killed := range []bool{false, true} {
			if !soak(true, i%2 == j) {
				continue
			}
			t.Run(fmt.Sprintf("at %s, killed %v", p, killed), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t).withOrders()
				b := w.faulty(p, "stop", swapArgs(localOrders(t))...)
				ended := p == point.ScaledBack || p == point.ProxyDeleted
				if ended {
					b.says(swapped)
					b.signal(syscall.SIGTERM)
				}
				b.stops(p)
				if err := s.client.AppsV1().Deployments(w.ns).Delete(t.Context(), "orders", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
					t.Fatal(err)
				}
				anew := i%2 == 0
				if anew {
					doc, _, _ := strings.Cut(fmt.Sprintf(ordersYAML, s.image), "\n---\n")
					w.apply(doc)
				}
				if killed {
					b.kill()
					w.elsewhere().bridge("restore", "deployment", "orders").exits(0)
				} else {
					b.goesOnToItsEnd()
				}
				w.await("nothing of ours", func() bool {
					left := w.snapshot()
					return !strings.Contains(left, "bridge.internal") && !strings.Contains(left, "manager: bridge")
				})
				if anew {
					w.awaitReady("app=orders", 2)
					w.answersSteadily(original)
				}
			})
		}
	}
}

// evict asks for the proxy's eviction, as kubectl drain does.
func (w *world) evict() error {
	w.t.Helper()
	return s.client.CoreV1().Pods(w.ns).EvictV1(w.t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: w.proxy().Name, Namespace: w.ns}})
}

// The proxy is evicted where the workload's own disruption budget allows it: another takes its place, the swap goes on, and
// bridge says so. Where the budget keeps a last pod, it keeps the proxy.
func TestProxyEvicted(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap()
	budgets := s.client.PolicyV1().PodDisruptionBudgets(w.ns)
	one := intstr.FromInt32(1)
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "orders"}, Spec: policyv1.PodDisruptionBudgetSpec{
		MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "orders"}},
	}}
	if _, err := budgets.Create(t.Context(), budget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	old := w.proxy()
	w.await("a budget that keeps the proxy", func() bool {
		got, err := budgets.Get(t.Context(), "orders", metav1.GetOptions{})
		return err == nil && got.Status.ObservedGeneration == got.Generation && got.Status.CurrentHealthy == 1
	})
	if err := w.evict(); !apierrors.IsTooManyRequests(err) {
		t.Errorf("evicting the last pod: %v, want it refused", err)
	}
	if err := budgets.Delete(t.Context(), "orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	budget.Spec.MinAvailable, budget.Spec.MaxUnavailable = nil, &one
	if _, err := budgets.Create(t.Context(), budget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("the proxy's eviction", func() bool { return w.evict() == nil })
	b.says("the proxy was lost in pod " + old.Name)
	w.answersSteadily("laptop")
	b.terminate()
	if err := budgets.Delete(t.Context(), "orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.assertGivenBack(before)
}

// kubectl's own way to credentials that expire: a program that is run again for new ones.
const pluginText = `#!/bin/sh
echo run >> "$DIR/runs"
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}' "$(cat "$DIR/token")"
`

// The user's token is revoked while swapped: bridge runs the program that hands out tokens again, and goes on. When that
// has none, bridge says that no heartbeat comes through, and when one does again.
func TestTokenExpiresWhileSwapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	path, dir := newPath(t), t.TempDir()
	config, err := clientcmd.LoadFromFile(path.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	plugin := filepath.Join(dir, "plugin")
	if err := os.WriteFile(plugin, []byte(pluginText), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, u := range config.AuthInfos {
		*u = api.AuthInfo{Exec: &api.ExecConfig{
			APIVersion: "client.authentication.k8s.io/v1", Command: plugin, InteractiveMode: api.NeverExecInteractiveMode,
			Env: []api.ExecEnvVar{{Name: "DIR", Value: dir}},
		}}
	}
	if err := clientcmd.WriteToFile(*config, path.kubeconfig); err != nil {
		t.Fatal(err)
	}
	team := newWorld(t) // where the user comes from: what is made there is not in the snapshot
	hand := func(name string) {
		t.Helper()
		token, err := team.token(name, w.ns)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	revoke := func(name string) {
		t.Helper()
		if err := s.client.CoreV1().Secrets(team.ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	runs := func() int {
		b, err := os.ReadFile(filepath.Join(dir, "runs"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "\n")
	}
	hand("first")
	b := w.bridgeAs(path.kubeconfig, nil, swapArgs(localOrders(t))...)
	b.says(swapped)
	had := runs()

	hand("second")
	revoke("first")
	path.cut() // the next carrier needs a token too
	w.await("the program to be run again", func() bool { return runs() > had })
	w.answersSteadily("laptop")

	revoke("second")
	path.cut()
	b.says("no heartbeat has come through for ")
	hand("third")
	b.says("the heartbeat comes through again, after ")
	w.answersSteadily("laptop")
	b.terminate()
	if err := s.client.RbacV1().RoleBindings(w.ns).Delete(t.Context(), "user", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.assertGivenBack(before)
}

// token is one of the team's "user", who may edit the namespace where; it is good as long as the Secret of that name is there.
func (w *world) token(secret, where string) (string, error) {
	ctx := w.t.Context()
	_, err := s.client.CoreV1().ServiceAccounts(w.ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "user"}}, metav1.CreateOptions{})
	if err == nil {
		_, err = s.client.RbacV1().RoleBindings(where).Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "user"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edit"},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: w.ns, Name: "user"}},
		}, metav1.CreateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	bound, err := s.client.CoreV1().Secrets(w.ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secret}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: bound.Name, UID: bound.UID},
	}}
	answer, err := s.client.CoreV1().ServiceAccounts(w.ns).CreateToken(ctx, "user", request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}

// restore --all gives back what was left behind, in this namespace or in all, and names what somebody holds.
func TestRestoreAll(t *testing.T) {
	t.Parallel()
	left, held := newWorld(t).withOrders(), newWorld(t).withOrders()
	before, beforeHeld := left.snapshot(), held.snapshot()
	none := left.bridge("restore", "--all")
	none.exits(0)
	none.says("there is nothing to give back in " + left.ns)
	b := held.swap()
	c := left.connect(s.kubeconfig, nil)
	c.socks()
	left.swap("--self-restore", "never").kill()
	c.kill()

	early := left.elsewhere().bridge("restore", "--all")
	early.exits(0)
	early.says("deployment/orders in " + left.ns + " is left to ")
	leases := s.client.CoordinationV1().Leases(left.ns)
	list, err := leases.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list.Items { // so that they lapse now, and not after a minute
		if _, err := leases.Patch(t.Context(), l.Name, types.MergePatchType, []byte(`{"spec":{"leaseDurationSeconds":1}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	left.await("a lapse", func() bool {
		return !slices.ContainsFunc(list.Items, func(l coordinationv1.Lease) bool { return time.Since(l.Spec.RenewTime.Time) < time.Second })
	})
	all := left.elsewhere().bridge("restore", "--all")
	all.exits(0)
	all.says("deployment/orders in " + left.ns + ": ")
	all.says(" in " + left.ns + ": removed")
	left.answersSteadily(original)
	left.assertGivenBack(before)

	other := held.elsewhere().bridge("restore", "--all")
	other.exits(0)
	other.says("deployment/orders in " + held.ns + " is left to ")
	held.answeredBy("laptop")
	held.elsewhere().bridge("restore", "--all", "--held").exits(0)
	b.exits(int(hint.Conflict))
	held.answersSteadily(original)
	held.assertGivenBack(beforeHeld)
}

// twoNodes brings a second node up, on which nothing comes unless it is uncordoned, and cuts it off when lose says so, until the test's end.
func twoNodes(t *testing.T) (cordon func(node string, yes bool), lose func(yes bool)) {
	t.Helper()
	embedded(t)
	if !soak(true, false) {
		t.Skip("takes minutes, and a second node")
	}
	if err := s.cluster(t.Context(), "up", "--nodes", "2"); err != nil {
		t.Fatal(err)
	}
	if err := s.cluster(t.Context(), "load", sampleImage+"="+filepath.Join(s.root, "bin", "sample")); err != nil {
		t.Fatal(err)
	}
	cordon = func(node string, yes bool) {
		t.Helper()
		body := fmt.Appendf(nil, `{"spec":{"unschedulable":%v}}`, yes)
		if _, err := s.client.CoreV1().Nodes().Patch(context.WithoutCancel(t.Context()), node, types.MergePatchType, body, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	lost := false
	lose = func(yes bool) {
		t.Helper()
		op := map[bool]string{true: "-I", false: "-D"}[yes]
		for _, rule := range []string{"INPUT -i", "FORWARD -i", "FORWARD -o", "OUTPUT -o"} {
			args := append([]string{"--net=/run/netns/" + clusterName + "-node2", "iptables", op}, strings.Fields(rule+" node1 -j DROP")...)
			if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil && yes != lost {
				t.Fatalf("%v: %s", err, out)
			}
		}
		lost = yes
	}
	t.Cleanup(func() {
		lose(false)
		cordon("node1", false)
		cordon("node2", true)
	})
	cordon("node2", true)
	return cordon, lose
}

// The node of the proxy is lost: another node takes it, the swap goes on and says so, and giving back does not wait for the pod
// that nobody can end.
func TestNodeLost(t *testing.T) {
	// Not parallel: other tests' pods would come to the node.
	cordon, lose := twoNodes(t)
	w := newWorld(t).withOrders()
	before := w.snapshot()
	cordon("node2", false)
	cordon("node1", true)
	b := w.swap()
	cordon("node1", false)
	old := w.proxy()
	if old.Spec.NodeName != "node2" {
		t.Fatalf("the proxy is on %s", old.Spec.NodeName)
	}
	begin := time.Now()
	lose(true)
	b.says("the proxy was lost in pod " + old.Name)
	w.answersSteadily("laptop")
	t.Logf("answered again %v after the node was lost", time.Since(begin).Round(time.Second))
	b.terminate()
	b.says("deleted, but not ended in ")
	w.answersSteadily(original)
	lose(false)
	w.await("the lost pod's end", func() bool { return len(w.pods("bridge.internal/proxy")) == 0 })
	w.assertGivenBack(before)
}

// The node of one of two proxies is lost: once the cluster knows that, the other takes all, and the laptop answers as before.
func TestStandbyNodeLost(t *testing.T) {
	// Not parallel, as above.
	cordon, lose := twoNodes(t)
	w := newWorld(t).withOrders()
	before := w.snapshot()
	cordon("node2", false)
	b := w.swap(standing...)
	w.proxies()
	pods := w.pods("bridge.internal/proxy")
	i := slices.IndexFunc(pods, func(p corev1.Pod) bool { return p.Spec.NodeName == "node2" })
	if i < 0 || pods[0].Spec.NodeName == pods[1].Spec.NodeName {
		t.Fatalf("the proxies are on %s and %s", pods[0].Spec.NodeName, pods[1].Spec.NodeName)
	}
	begin := time.Now()
	lose(true)
	w.await("a proxy in its place", func() bool {
		now := w.pods("bridge.internal/proxy")
		return len(slices.DeleteFunc(now, func(p corev1.Pod) bool { return p.Spec.NodeName == "node2" })) == 2
	})
	w.answersSteadily("laptop")
	t.Logf("answered by the laptop alone %v after the node was lost", time.Since(begin).Round(time.Second))
	b.says("the proxy was lost in pod " + pods[i].Name)
	b.terminate()
	b.says("deleted, but not ended in ")
	w.answersSteadily(original)
	lose(false)
	w.await("the lost pod's end", func() bool { return len(w.pods("bridge.internal/proxy")) == 0 })
	w.assertGivenBack(before)
}
